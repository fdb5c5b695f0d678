"""A model where people annotate: CVAT and Label Studio."""
