"""Task distributions: generated problems, images, sentences and tables, as numbered episodes."""
