"""Dequantizes the weights of DynamicQuantizeLSTM, an operator of onnxruntime."""

from collections.abc import Mapping

import numpy as np

from jaxgru import checks

SCALES = ("W_scale", "W_zero_point", "R_scale", "R_zero_point")


def dequantized(
    labels: Mapping[str, str], arrays: dict[str, np.ndarray], directions: int
) -> dict[str, np.ndarray]:
    """Compute the arrays of the LSTM that such a node approximates.

        W = (W - W_zero_point) * W_scale

    W `[D, I, 4H]` and R `[D, H, 4H]` are int8 or uint8. The scales and zero points have shape `[D]`
    or `[D, 4H]`. The results are float32, and transposed, as an LSTM has them.
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
        # The difference of two bytes is exact in float32.
        steps = value.astype(np.float32) - zero.reshape(directions, 1, -1).astype(np.float32)
        with np.errstate(all="ignore"):  # inf and NaN are valid values
            made[role] = np.swapaxes(steps * scale.reshape(directions, 1, -1), 1, 2)
    return made
