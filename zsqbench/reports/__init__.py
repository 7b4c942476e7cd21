"""Reports of a run for people: rows, tables, tensor maps, diagnostics, pictures, progress, and the copy in MLflow."""
