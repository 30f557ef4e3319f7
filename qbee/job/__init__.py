"""The whole job, from a label table to a verified .tflite, in stages that resume."""
