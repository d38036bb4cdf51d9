"""What a .tflite or .litertlm holds, read without running it."""
