"""Trained models as SavedModels for TensorFlow Serving: written, published under a version number, verified."""
