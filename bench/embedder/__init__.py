"""The default embedder: its ONNX graphs, the fit of its smoothing, its tokenizer's check and its speed."""
