"""Models of this project as scorers and writers of captions, for the corpus' stages."""
