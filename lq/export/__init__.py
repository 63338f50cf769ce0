"""What a run leaves behind: one directory that deploys without the training code."""
