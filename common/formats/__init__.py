"""On-disk formats: files of images, audio, video, tables, text and its vocabularies."""
