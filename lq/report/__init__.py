"""Tables for people; they take plain rows and know nothing of models."""
