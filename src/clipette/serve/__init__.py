"""API, batching, web page: FastAPI over an encoder and a collection, without PyTorch."""
