"""ONNX out, checked; ONNX in, ready to predict.

`session` opens a file in onnxruntime, `write` exports a network, `compare` checks the file against it, `predict` runs
a file on arrays and on images, `quantize` makes an INT8 file of a float one, and `target` is onnxruntime as the cost
model and benchmarks know it. Only what exports needs torch: predicting starts in a blink.
"""
