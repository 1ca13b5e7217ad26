"""Images in, e-mails out: ``python -m examples.image_pipeline``."""
