#!/usr/bin/env python3
"""bitsmith's packed models beside ONNX Runtime's int8 on this machine: one run, alternating rounds, medians.

    pip install onnx onnxruntime numpy
    cargo build --release
    python bench/peers/runtime.py                                    # all models, batch 1 and 32, 2 threads
    python bench/peers/runtime.py --models resnet20 --batch 1 --threads 1 --rounds 5

Each network is exported with random weights, packed at W8A8 and W4A4 (linear layers: W8A8, W4A8, W2A8) by `bitsmith quantize
--method ptq --data random`, and quantized to int8 by ONNX Runtime's own tools (QDQ, per-channel weights, u8 activations,
s8 weights, 16 random samples). Every measurement is a process of its own. One JSON object per line, then a table: milliseconds
of each, and how many times as fast as ONNX Runtime's int8 bitsmith is.
"""
import argparse, json, os, statistics, subprocess, sys, time

ap = argparse.ArgumentParser()
ap.add_argument("--bitsmith", default="target/release/bitsmith")
ap.add_argument("--models", default="resnet20,resnet18,resnet50,mobilenetv2,vit-tiny,linear")
ap.add_argument("--batch", default="1,32")
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--rounds", type=int, default=3)
ap.add_argument("--seconds", type=float, default=2.0, help="per measurement")
ap.add_argument("--folder", default="target/bench-runtime", help="where models are made, and found again")
ap.add_argument("--measure", help=argparse.SUPPRESS)
args = ap.parse_args()

LINEAR = (8, 4096)  # layers, width


def measure(path, batch):
    """Median milliseconds of one call of ONNX Runtime."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    value = session.get_inputs()[0]
    dims = [batch] + [d if isinstance(d, int) else 1 for d in value.shape[1:]]
    feed = {value.name: np.random.default_rng(0).standard_normal(dims).astype(np.float32)}
    session.run(None, feed)
    times, began = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - began < args.seconds:
        t = time.perf_counter()
        session.run(None, feed)
        times.append((time.perf_counter() - t) * 1e3)
    print(statistics.median(times))


def save_linear(path):
    """A chain of wide linear layers, as in language models; the last one is as wide as the others."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    layers, width = LINEAR
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((rng.standard_normal((width, width)) / width**0.5).astype(np.float32), f"w{i}")
        for i in range(layers)
    ]
    names = ["x"] + [f"y{i}" for i in range(layers)]
    nodes = [helper.make_node("Gemm", [names[i], f"w{i}"], [names[i + 1]], f"fc{i}", transB=1) for i in range(layers)]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(nodes, "linear", [value(names[0])], [value(names[-1])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def save_int8(source, path):
    """ONNX Runtime's own static quantization."""
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    graph = onnx.load(source).graph
    constants = {t.name for t in graph.initializer}
    value = next(v for v in graph.input if v.name not in constants)
    dims = [1] + [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
    rng = np.random.default_rng(0)

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter([{value.name: rng.standard_normal(dims).astype(np.float32)} for _ in range(16)])

        def get_next(self):
            return next(self.left, None)

    prepared = path + ".prepared"
    try:
        quant_pre_process(source, prepared)
    except Exception:  # shapes it cannot infer: its optimiser alone will do
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(prepared, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    os.remove(prepared)


def call(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return done.stdout


def prepare(name):
    """Paths of the float, int8 and packed files of a network; made if they are not there."""
    os.makedirs(args.folder, exist_ok=True)
    path = lambda suffix: os.path.join(args.folder, f"{name}{suffix}")
    if not os.path.exists(path(".onnx")):
        if name == "linear":
            save_linear(path(".onnx"))
        else:
            call(args.bitsmith, "export", name, "--to", "onnx", "--out", path(".onnx"))
    if not os.path.exists(path("-int8.onnx")):
        save_int8(path(".onnx"), path("-int8.onnx"))
    widths = [(8, 8), (4, 8), (2, 8)] if name == "linear" else [(8, 8), (4, 4)]
    packed = {}
    for weights, activations in widths:
        label = f"W{weights}A{activations}"
        packed[label] = path(f"-{label}.bitsmith")
        if not os.path.exists(packed[label]):
            # Whether it is verified on random numbers (near ties in an untrained network) is not the question here.
            subprocess.run([args.bitsmith, "quantize", path(".onnx"), "--method", "ptq", "--weight-bits", str(weights),
                            "--activation-bits", str(activations), "--attention-bits", "8", "--data", "random",
                            "--data-limit", "32", "--quiet", "--force", "--out", packed[label]], stdout=subprocess.DEVNULL)
            if not os.path.exists(packed[label]):
                sys.exit(f"{packed[label]} was not made")
    return path("-int8.onnx"), packed


if args.measure:
    measure(args.measure, int(args.batch))
    sys.exit()

rows = []
for name in args.models.split(","):
    int8, packed = prepare(name)
    for batch in args.batch.split(","):
        times = {}
        for _ in range(args.rounds):
            peer = call(sys.executable, __file__, "--measure", int8, "--batch", batch, "--threads", str(args.threads),
                        "--seconds", str(args.seconds))
            times.setdefault("ort", []).append(float(peer))
            for label, path in packed.items():
                ours = call(args.bitsmith, "bench", path, "--batch", batch, "--threads", str(args.threads), "--seconds",
                            str(args.seconds), "--json")
                times.setdefault(label, []).append(json.loads(ours)["median_ms"])
        medians = {label: statistics.median(t) for label, t in times.items()}
        for label in packed:
            rows.append((name, batch, label, medians["ort"], medians[label]))
        print(json.dumps({"model": name, "batch": int(batch), "threads": args.threads, "ms": times}), flush=True)

print(f"\n{'network':12} {'batch':>5} {'bits':>5} {'ORT int8 ms':>12} {'bitsmith ms':>12} {'times as fast':>14}")
for name, batch, label, peer, ours in rows:
    print(f"{name:12} {batch:>5} {label:>5} {peer:12.3f} {ours:12.3f} {peer / ours:14.2f}")
