"""The weights of onnxruntime's DynamicQuantizeLSTM, as numbers."""

from collections.abc import Mapping

import numpy as np

from jaxgru import checks

SCALES = ("W_scale", "W_zero_point", "R_scale", "R_zero_point")


def dequantized(
    labels: Mapping[str, str], arrays: dict[str, np.ndarray], directions: int
) -> dict[str, np.ndarray]:
    """The arrays of the LSTM that such a node stands for.

        W = (W - W_zero_point) * W_scale

    W `[D, I, 4H]` and R `[D, H, 4H]` are int8 or uint8, which a scale and a zero point `[D]` or
    `[D, 4H]` turn into float32; an LSTM has their transposes.
    """
    made = {role: value for role, value in arrays.items() if role not in SCALES}
    for role in ("W", "R"):
        value, scale, zero = (
            arrays[part] for part in (role, f"{role}_scale", f"{role}_zero_point")
        )
        checks.array("from_onnx", labels[role], value, (directions, "N", "4 * H"))
        if value.dtype not in (np.int8, np.uint8):
            expected, got = "int8 or uint8", checks.describe(value)
            raise checks.error(TypeError, "from_onnx", labels[role], expected, got)
        kinds = ((f"{role}_scale", scale, np.float32), (f"{role}_zero_point", zero, value.dtype))
        for part, found, dtype in kinds:
            shape = (directions, value.shape[2])[: 1 if found.ndim == 1 else 2]
            checks.array("from_onnx", labels[part], found, shape)
            if found.dtype != dtype:
                expected, got = np.dtype(dtype).name, checks.describe(found)
                raise checks.error(TypeError, "from_onnx", labels[part], expected, got)
        # A difference of two bytes is exact in float32.
        steps = value.astype(np.float32) - zero.reshape(directions, 1, -1).astype(np.float32)
        with np.errstate(all="ignore"):  # inf and NaN are computed as they are
            made[role] = np.swapaxes(steps * scale.reshape(directions, 1, -1), 1, 2)
    return made
