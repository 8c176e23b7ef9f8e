"""The one Trainer call, the outputs of teachers, and the stages that train or take in a model."""
