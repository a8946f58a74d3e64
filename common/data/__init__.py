"""Named sources, tables, tokenizers, audio and video decoding, exact generators. Import the module you need."""
