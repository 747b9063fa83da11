"""Compiled functions over bytes: how they are made, and reads of memory that Python's indexing has no words for."""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

#: How many rows before it is needed `ahead` is asked for one's memory, which has time to come then.
AHEAD = 16


def compiled(function: Any) -> Any:
    """Compiled when first called, and kept on disk for the next process."""
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # neither this folder nor the user's cache may be written: each process compiles for itself
        return njit(nogil=True, error_model="numpy")(function)


def _made_inline(function: Any) -> Any:
    """Numba's own decorator, whose type would let nobody call what it makes."""
    return intrinsic(function)


def _place(context: Any, builder: Any, signature: Any, arguments: Any, bits: int) -> Any:
    """Where so many bits lie, from the second argument's index of the first on."""
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    at = context.cast(builder, arguments[1], signature.args[1], types.intp)
    return builder.bitcast(builder.gep(data, [at]), ir.IntType(bits).as_pointer())


def _reader(bits: int, found: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_place(context, builder, signature, arguments, bits))
        loaded.align = 1
        return builder.zext(loaded, ir.IntType(found.bitwidth)) if bits < found.bitwidth else loaded

    return found(array, index), generate


@_made_inline
def byte_at(_: Any, array: Any, index: Any) -> Any:
    """The byte at an index that is known to lie in the array: negative ones are not looked for at its end."""
    return _reader(8, types.uint8, array, index)


@_made_inline
def half_at(_: Any, array: Any, index: Any) -> Any:
    """The four bytes from an index on, lowest first, as an unsigned 64-bit number; all must lie in the array."""
    return _reader(32, types.uint64, array, index)


@_made_inline
def word_at(_: Any, array: Any, index: Any) -> Any:
    """The eight bytes from an index on, lowest first; all must lie in the array."""
    return _reader(64, types.uint64, array, index)


@compiled
def alike(array: Any, one: Any, other: Any, length: Any) -> Any:
    """Whether the bytes from two indexes on, so many of each, are the same."""
    if one == other:
        return True
    k = 0
    while k + 8 <= length:
        if word_at(array, one + k) != word_at(array, other + k):
            return False
        k += 8
    while k < length:
        if byte_at(array, one + k) != byte_at(array, other + k):
            return False
        k += 1
    return True


@_made_inline
def put_word(_: Any, array: Any, index: Any, word: Any) -> Any:
    """Writes eight bytes from an index on, lowest first; there must be room for all."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _place(context, builder, signature, arguments, 64), align=1)
        return context.get_dummy_value()

    return types.void(array, index, types.uint64), generate


@_made_inline
def trailing_zeros(_: Any, word: Any) -> Any:
    """How many of the lowest bits are 0; 64 for 0."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], cgutils.false_bit)

    return types.int64(types.uint64), generate


@_made_inline
def multiply(_: Any, one: Any, other: Any) -> Any:
    """Low and high word of the product of two unsigned words."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide, word = ir.IntType(128), ir.IntType(64)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), word)
        return context.make_tuple(builder, signature.return_type, [builder.trunc(product, word), high])

    pair: Any = types.UniTuple
    return pair(types.uint64, 2)(types.uint64, types.uint64), generate


@_made_inline
def ahead(_: Any, array: Any, index: Any) -> Any:
    """Has the processor fetch the cache line in which an element lies, by its place in the array's memory. A hint: any
    index may be given, and nothing waits for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        at = context.cast(builder, arguments[1], signature.args[1], types.intp)
        place = builder.bitcast(builder.gep(data, [at]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        read, kept, data_cache = number(0), number(3), number(1)
        hint = builder.module.declare_intrinsic(
            "llvm.prefetch.p0", fnty=ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        )
        builder.call(hint, [place, read, kept, data_cache])
        return context.get_dummy_value()

    return types.void(array, index), generate
