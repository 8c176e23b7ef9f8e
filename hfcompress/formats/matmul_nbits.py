"""What onnxruntime's operators for packed matrices take, and what they keep in memory.

MatMulNBits copies a matrix into its kernel's order when a model is loaded, and adds a float32 scale and a float32 sum
to every block (onnxruntime 1.32 on x86 with AVX512: 4 bits in blocks of 128 take 4.5 bits a weight, in memory and read
for every token). It has no kernel for 2 bits in blocks of 256: such a product takes 250 times as long.
GatherBlockQuantized reads its rows from the file, with a float32 scale a block.
"""

from typing import TYPE_CHECKING

from hfcompress.errors import UserError

if TYPE_CHECKING:
    from hfcompress.architectures.decoder_spec import LanguageShape

LARGEST_BLOCK = {2: 128, 4: 256, 8: 256}
SMALLEST_BLOCK = 16
MATRIX_BITS = (2, 4, 8)  # that MatMulNBits computes with
EMBEDDING_BITS = (4, 8)  # that GatherBlockQuantized looks up
BLOCK_BITS, ROW_BLOCK_BITS = 64, 32  # of scales and sums
FILE_SCALE_BITS = 32  # of a block's scale in the file
PAGE = 4096  # bytes: where a tensor of the file begins


def block_size(group: int, bits: int) -> int:
    """The operators' block for a group of columns of stored bits; the blocks of a larger group repeat its scale.

    Raises:
        UserError: no power of two from 16 to 256 divides the group.
    """
    block = LARGEST_BLOCK[bits]
    while block >= SMALLEST_BLOCK and group % block:
        block //= 2
    if block < SMALLEST_BLOCK:
        raise UserError(f"a group of {group} columns is no multiple of 16, which the ONNX format needs")
    return block


def stored_bits(bits: int, known: tuple[int, ...]) -> int:
    """Bits that an operator stores a matrix with: 3 are stored as 4."""
    return next(wide for wide in known if wide >= bits)


def matrix_bits(bits: int, group: int) -> float:
    """Bits a weight that a matrix takes in memory."""
    wide = stored_bits(bits, MATRIX_BITS)
    return wide + BLOCK_BITS / block_size(group, wide)


def row_bits(bits: int, group: int) -> float:
    """Bits a weight that the rows of an embedding take."""
    wide = stored_bits(bits, EMBEDDING_BITS)
    return wide + ROW_BLOCK_BITS / block_size(group, wide)


def file_bytes(rows: int, columns: int, bits: int, group: int, symmetric: bool, known: tuple[int, ...]) -> int:
    """Return what a matrix takes in the ONNX file: codes, and a scale (and a zero) a block, each on pages of its own.

    Args:
        known: bits that its operator stores: MATRIX_BITS or EMBEDDING_BITS.
    """
    wide = stored_bits(bits, known)
    blocks = columns // block_size(group, wide)
    tensors = [rows * columns * wide // 8, rows * blocks * FILE_SCALE_BITS // 8]
    if not symmetric:
        tensors.append(rows * -(-blocks * wide // 8))
    return sum(PAGE * -(-size // PAGE) for size in tensors)


def resident_bits(weight_bits: float) -> float:
    """About what matrices of so many bits, float16 scales of groups of 128 included, take in memory."""
    return weight_bits + (BLOCK_BITS - 16) / 128


def require_sizes(model: "LanguageShape") -> None:
    """Refuse what onnxruntime's operators do not take, which config.json alone says.

    Raises:
        UserError: heads or rows of another length than a multiple of 16.
    """
    lengths = {"head_dim (hidden_size / num_attention_heads)": model.head_dim}
    lengths |= {f"row of {name.rpartition('.')[2]}": columns for name, _, columns in model.linears()}
    for name, length in lengths.items():
        if length % SMALLEST_BLOCK:
            raise UserError(
                f"the model's {name} is {length}, and onnxruntime's operators for quantized decoders take multiples "
                f"of {SMALLEST_BLOCK}; give another --base, or quantize this one for transformers alone: hfcompress "
                "run any_causal_lm"
            )
