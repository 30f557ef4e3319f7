"""The .tflite format and what runs it: checks, TFLite Micro, LiteRT, arena, inspection."""
