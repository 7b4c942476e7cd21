"""Annotations in COCO's format, small and valid, for tests to spoil."""

import json


def content(**changed):
    """One image with one box of one category; `changed` replaces lists by name."""
    return {
        "images": [{"id": 7, "file_name": "b.png", "width": 20, "height": 10}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0}],
        "categories": [{"id": 3, "name": "cat"}],
    } | changed


def write(folder, text):
    """Write a file of annotations, given as text or as data; returns its path."""
    path = folder / "instances.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path
