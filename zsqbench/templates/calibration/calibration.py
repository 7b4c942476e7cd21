"""The images of calibration.safetensors for the calibrators of onnxruntime, OpenVINO and TensorRT.

Each function imports its own library; `images` needs numpy and safetensors.
"""

from pathlib import Path

FILE = Path(__file__).with_name("calibration.safetensors")


def images():
    """The images in the network's input format: float32 [N, C, H, W], normalised."""
    from safetensors.numpy import load_file

    return load_file(FILE)["images"]


def batches(size=1):
    """The images in batches of at most this size."""
    found = images()
    return [found[start : start + size] for start in range(0, len(found), size)]


def onnxruntime_reader(model, size=1):
    """For `onnxruntime.quantization.quantize_static`: `model` is the path of the float ONNX file."""
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import CalibrationDataReader

    name = InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rewind()

        def get_next(self):
            return next(self.left, None)

        def rewind(self):
            self.left = iter([{name: batch} for batch in batches(size)])

    return Reader()


def openvino_dataset(size=1):
    """For `nncf.quantize(model, calibration.openvino_dataset())`, where `model` is read by openvino."""
    import nncf

    return nncf.Dataset(batches(size))


def tensorrt_calibrator(cache="calibration.cache", size=1):
    """For `config.int8_calibrator` of a TensorRT builder; torch holds the batch on the GPU."""
    import tensorrt
    import torch

    left = iter([batch for batch in batches(size) if len(batch) == size])

    class Calibrator(tensorrt.IInt8EntropyCalibrator2):
        def get_batch_size(self):
            return size

        def get_batch(self, names):
            batch = next(left, None)
            if batch is None:
                return None
            self.batch = torch.from_numpy(batch).cuda()  # kept until the next call
            return [self.batch.data_ptr()]

        def read_calibration_cache(self):
            return Path(cache).read_bytes() if Path(cache).exists() else None

        def write_calibration_cache(self, content):
            Path(cache).write_bytes(content)

    return Calibrator()
