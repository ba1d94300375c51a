"""Size and speed of the codecs, against zstd on the same bytes and the entropy floor. One thread.

The values are made: base weights below a threshold, moved by steps like Adam's (exponents take 2.6 bits each, as in
trained tasks), in fp32, bf16 and fp16; or the fp32 array of VALUES.npy. The floor is sign and mantissa as they are and
the exponent at its empirical entropy. Everything that was timed is decoded and compared, bit for bit.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard

from deltahub import codecs
from deltahub.codecs import planes
from deltahub.codecs.index import decode_index, encode_index
from deltahub.codecs.quantized import dequantize, encode_quantized, measure, quantize
from deltahub.manifest import Plain
from deltahub.rawtensor import FLOATS, Bytes, RawTensor, narrow

sys.path.insert(0, str(Path(__file__).parent))
import common

Floats = npt.NDArray[np.float32]
Row = dict[str, object]
_MANTISSA = {"F32": 23, "BF16": 7, "F16": 10}
_DENSITIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


def made_values(count: int) -> tuple[Floats, Floats]:
    """(base, trained) at the smallest weights of a base; every value was moved."""
    rng = np.random.default_rng(0)
    base = rng.uniform(-3e-4, 3e-4, count)
    size = np.repeat(np.exp(0.3 * rng.standard_normal(count // 1000 + 1)), 1000)[:count]  # tensors move differently far
    steps = 3e-3 * size * rng.standard_normal(count) * np.exp(0.3 * rng.standard_normal(count))
    return base.astype(np.float32), (base + steps).astype(np.float32)


def floor_bytes(bits: npt.NDArray[np.unsignedinteger], dtype: str) -> float:
    mantissa, width = _MANTISSA[dtype], 8 * bits.itemsize
    counts = np.bincount((bits >> mantissa) & ((1 << (width - 1 - mantissa)) - 1))
    share = counts[counts > 0] / bits.size
    return float(bits.size * (1 + mantissa - share @ np.log2(share)) / 8)


def timed(encode: Callable[[], bytes], decode: Callable[[bytes], object], raw: bytes, rounds: int) -> Row:
    """Sizes and MB of raw bytes a second; raises unless what comes back is ``raw``."""
    stored, encode_times, decode_times = b"", [], []
    for _ in range(rounds):
        start = time.perf_counter()
        stored = encode()
        middle = time.perf_counter()
        decoded = decode(stored)
        decode_times.append(time.perf_counter() - middle)
        encode_times.append(middle - start)
        back = decoded.tobytes() if isinstance(decoded, np.ndarray) else decoded
        if back != raw:
            raise SystemExit("a codec gave other bytes than it was given")
    return {
        "bytes": len(stored),
        "ratio": len(stored) / len(raw),
        "encode_mb_s": len(raw) / 1e6 / statistics.median(encode_times),
        "decode_mb_s": len(raw) / 1e6 / statistics.median(decode_times),
    }


def ours(raw: bytes, dtype: str, reference: bytes | None, rounds: int) -> Row:
    config = codecs.encode(raw, dtype, reference).config
    row = timed(
        lambda: codecs.encode(raw, dtype, reference).stored,
        lambda stored: codecs.decode(config, stored, len(raw), reference),
        raw,
        rounds,
    )
    return {"codec": str(config["codec"]), **row}


def with_zstd(raw: bytes, level: int, rounds: int) -> Row:
    packer, unpacker = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    return {"codec": f"zstd -{level}", **timed(lambda: packer.compress(raw), unpacker.decompress, raw, rounds)}


def bench_values(values: Floats, base: Floats | None, rounds: int) -> list[Row]:
    rows: list[Row] = []
    for dtype in FLOATS:
        bits = narrow(values, dtype)
        raw, floor = bits.tobytes(), floor_bytes(bits, dtype)
        found = [ours(raw, dtype, None, rounds), with_zstd(raw, 3, rounds), with_zstd(raw, 19, 1)]
        rows += [{"dtype": dtype, **row, "of_floor": row["bytes"] / floor} for row in found]  # type: ignore[operator]
        if base is not None:
            rows += against_base(bits, narrow(base, dtype), dtype, floor, rounds)
    return rows


def against_base(bits: npt.NDArray, before: npt.NDArray, dtype: str, floor: float, rounds: int) -> list[Row]:  # type: ignore[type-arg]
    """XOR with the base's values: where all moved (forced), and where every other value did (chosen by `encode`)."""
    forced = planes.encode((bits ^ before).view(np.uint8), bits.itemsize)
    half = np.where(np.arange(bits.size) % 2, bits, before).astype(bits.dtype)
    plain, chosen = ours(half.tobytes(), dtype, None, rounds), ours(half.tobytes(), dtype, before.tobytes(), rounds)
    return [
        {
            "dtype": dtype, "codec": "xor base, all moved", "bytes": len(forced.stored),
            "ratio": len(forced.stored) / bits.nbytes, "of_floor": len(forced.stored) / floor,
        },
        {"dtype": dtype, **plain, "codec": f"half moved: {plain['codec']}"},
        {"dtype": dtype, **chosen, "codec": f"half moved: {chosen['codec']}"},
    ]  # fmt: skip


def bench_quantized(values: Floats, rounds: int) -> list[Row]:
    rows: list[Row] = []
    for dtype in FLOATS:
        original = RawTensor.of_bits(dtype, values.shape, narrow(values, dtype))
        for bits in (8, 4):
            restored = dequantize(quantize(original, bits))
            raw = restored.data.tobytes()
            config = encode_quantized(quantize(original, bits)).config

            def encode(original: RawTensor = original, bits: int = bits) -> bytes:
                return encode_quantized(quantize(original, bits)).stored

            def decode(stored: bytes, config: dict[str, Plain] = config, size: int = len(raw)) -> Bytes:
                return codecs.decode(config, stored, size)

            row = timed(encode, decode, raw, rounds)
            error, rms = measure((original, restored))
            each = 8 * len(encode()) / values.size
            rows.append({"dtype": dtype, "codec": f"int{bits}", "bits": each, "rms": rms, "max_error": error, **row})
    return rows


def bench_index(n: int) -> list[Row]:
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for density in _DENSITIES:
        indices = np.flatnonzero(rng.random(n) < density).astype(np.int64)
        k = len(indices)
        floor = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
        start = time.perf_counter()
        encoded = encode_index(indices)
        middle = time.perf_counter()
        decoded = decode_index(encoded.config, encoded.stored, k, n)
        end = time.perf_counter()
        if not np.array_equal(decoded, indices):
            raise SystemExit("the index codec gave other positions than it was given")
        rows.append(
            {
                "density": density, "k": k, "bits": 8 * len(encoded.stored) / k,
                "of_floor": 8 * len(encoded.stored) / floor, "encode_ms": 1e3 * (middle - start),
                "decode_ms": 1e3 * (end - middle),
            }
        )  # fmt: skip
    return rows


def table(title: str, rows: list[Row], columns: dict[str, tuple[str, str]]) -> None:
    """``columns``: key of a row to (head, format); a row may lack some."""
    cells = [[format(row[key], form) if key in row else "" for key, (_, form) in columns.items()] for row in rows]
    common.show(title, [head for head, _ in columns.values()], cells)


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("values", nargs="?", type=Path, metavar="VALUES.npy", help="fp32 values to use instead")
    parsed = parser.parse_args()
    count, n, rounds = (100_000, 2_000_000, 3) if parsed.quick else (1_770_000, 22_700_000, 9)
    base, values = made_values(count)
    loaded = None if parsed.values is None else np.load(parsed.values, allow_pickle=False)
    if loaded is not None:
        values = np.ascontiguousarray(loaded, np.float32).reshape(-1)
    lossless = bench_values(values, base if loaded is None else None, rounds)
    lossy, index = bench_quantized(values, rounds), bench_index(n)
    if parsed.json:
        common.print_json({"count": values.size, "lossless": lossless, "lossy": lossy, "n": n, "index": index})
        return
    speeds = {"encode_mb_s": ("encode MB/s", ",.0f"), "decode_mb_s": ("decode MB/s", ",.0f")}
    names = {"dtype": ("dtype", ""), "codec": ("codec", "")}
    sizes = {"ratio": ("of raw", ".3f"), "of_floor": ("of floor", ".3f")}
    table(f"{values.size:,} values, without loss", lossless, {**names, **sizes, **speeds})
    loss = {"bits": ("bits a value", ".2f"), "rms": ("relative rms", ".4f"), "max_error": ("largest error", ".2e")}
    table("with loss, groups of 256, scales included", lossy, {**names, **loss, **speeds})
    head = {"density": ("density", "g"), "k": ("k", ","), "bits": ("bits each", ".2f")}
    costs = {
        "of_floor": ("of log2 C(N,k)", ".3f"),
        "encode_ms": ("encode ms", ".1f"),
        "decode_ms": ("decode ms", ".1f"),
    }
    table(f"random masks of {n:,} parameters", index, {**head, **costs})


if __name__ == "__main__":
    main()
