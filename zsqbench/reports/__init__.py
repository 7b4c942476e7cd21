"""What a run tells people: rows, tables, tensor maps, diagnostics, pictures, progress, and the copy in MLflow."""
