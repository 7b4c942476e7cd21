"""A run reports to people in rows, tables, tensor maps, diagnostics, pictures, progress, and the copy in MLflow."""
