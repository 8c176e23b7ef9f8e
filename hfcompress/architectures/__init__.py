"""What is known of transformers' architectures: module names, config fields, shapes, and how a cut model is saved."""
