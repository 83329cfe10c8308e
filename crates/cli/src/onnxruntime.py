"""Computes batches with ONNX Runtime for `bitsmith verify --onnx`.

Protocol, all little-endian: this side first writes one line, "ready" or "error: ...". Then, for each batch, it reads a rank and
as many dimensions (int64) and the float32 elements of the first input, and writes the same for the first output.
"""
import struct
import sys

try:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # What the file says, not what an optimiser makes of it.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if len(sys.argv) > 2:
        options.intra_op_num_threads = int(sys.argv[2])
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
except Exception as error:  # whatever it is, the other side shall hear it
    print("error:", " ".join(str(error).split()), flush=True)
    sys.exit(1)

print("ready", flush=True)
source, sink = sys.stdin.buffer, sys.stdout.buffer
while head := source.read(8):
    (rank,) = struct.unpack("<q", head)
    shape = struct.unpack(f"<{rank}q", source.read(8 * rank))
    x = np.frombuffer(source.read(4 * int(np.prod(shape))), "<f4").reshape(shape)
    y = np.ascontiguousarray(session.run(None, {name: x})[0], "<f4")
    sink.write(struct.pack(f"<{1 + y.ndim}q", y.ndim, *y.shape) + y.tobytes())
    sink.flush()
