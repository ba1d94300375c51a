"""The shared-index product on a CPU, compiled at run time for the machine that it runs on.

For every task of a batch, ``y += x S' + b``, with ``S = W_task - W_base`` sparse, and its positions the same for all.
A unit of work is one task's tile of 16 tokens, in three steps that never leave the cache:

1. transpose the tile of ``x``, so that 16 tokens of a feature lie in one vector;
2. for each output feature, sum its few masked inputs, on top of the task's bias: one multiply-add of 16 tokens for
   each masked position;
3. transpose the sums back and add them to ``y``.

Values are read where the delta has them and the base's are subtracted on the way, so a batch needs no table, no index
of its own, and no memory but two tiles for each thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import torch
from llvmlite import ir

TILE = 16
"""Tokens of a unit of work, and the least width of a matrix."""
_FIELDS = (
    "x", "y", "values", "biases", "stride", "base", "rows", "indices", "units", "count", "inputs", "outputs",
    "positions", "scratch", "next", "thread",
)  # fmt: skip

_LONG, _INT, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, TILE)


class Job(ctypes.Structure):
    """One product: addresses, sizes, and two counters that the threads share and that begin at 0.

    ``values`` has an address for each task, ``biases`` a row for each, ``stride`` floats apart; ``rows`` are int32
    (outputs, 3): an output, where its positions begin and end, of ``positions`` in all; ``units`` are int32 (count, 3):
    task, first token, number of tokens; ``scratch`` has room for (inputs + outputs) x TILE floats of each thread,
    aligned to 64 bytes.
    """

    _fields_ = [(name, ctypes.c_int64) for name in _FIELDS]


class Kernel:
    """The compiled product; compiling takes about 0.3 s."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_default_triple()
        machine = target.create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
        )
        module = llvm.parse_assembly(str(_module(machine)))
        builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
        builder.getModulePassManager().run(module, builder)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        self._work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._engine.get_function_address("work"))
        self._parallel = _openmp()

    def run(self, job: Job, threads: int) -> None:
        """Runs ``job`` to its end; Python's lock is released meanwhile."""
        if threads > 1 and self._parallel is not None:
            self._parallel(self._work, ctypes.addressof(job), threads, 0)
        else:
            self._work(ctypes.addressof(job))


def _openmp() -> Any:
    """The entry to the very threads that torch's own operators use: they wait awake, and others would be in their way.

    None where torch has others.
    """
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        parallel = ctypes.CDLL(str(path)).GOMP_parallel
        parallel.restype = None
        parallel.argtypes = [ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        return parallel
    return None


def _module(machine: Any) -> ir.Module:
    module = ir.Module()
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_LONG.as_pointer()]), "work")
    _Code(ir.IRBuilder(function.append_basic_block()), function.args[0]).work()
    return module


class _Code:
    """Writes the function; methods emit what their names say."""

    def __init__(self, builder: ir.IRBuilder, job: ir.Argument) -> None:
        self.b = builder
        self.job = job

    def work(self) -> None:
        """Takes units until there is none left."""
        b = self.b
        thread = self.count("thread")
        self.inputs, self.outputs = self.slot("inputs"), self.slot("outputs")
        size = b.mul(b.add(self.inputs, self.outputs), _long(4 * TILE))
        self.states = b.inttoptr(b.add(self.slot("scratch"), b.mul(thread, size)), _FLOAT.as_pointer())
        self.sums = self.at(self.states, b.mul(self.inputs, _long(TILE)))
        units = self.pointer("units", _INT)
        self.base, self.rows, self.indices = (
            self.pointer("base", _FLOAT), self.pointer("rows", _INT), self.pointer("indices", _INT)
        )  # fmt: skip
        again, body, end = (b.append_basic_block(name) for name in ("again", "body", "end"))
        b.branch(again)
        b.position_at_end(again)
        number = self.count("next")
        b.cbranch(b.icmp_signed("<", number, self.slot("count")), body, end)
        b.position_at_end(body)
        task, first, self.tokens = (
            b.sext(b.load(self.at(units, b.add(b.mul(number, _long(3)), _long(field)))), _LONG) for field in range(3)
        )
        self.x = self.at(self.pointer("x", _FLOAT), b.mul(first, self.inputs))
        self.y = self.at(self.pointer("y", _FLOAT), b.mul(first, self.outputs))
        self.own = b.inttoptr(b.load(self.at(self.pointer("values", _LONG), task)), _FLOAT.as_pointer())
        self.biases = self.at(self.pointer("biases", _FLOAT), b.mul(task, self.slot("stride")))
        self.fetch()
        self.transpose()
        self.sum()
        self.add()
        b.branch(again)
        b.position_at_end(end)
        b.ret_void()

    def fetch(self) -> None:
        """Asks for all of the task's values, which are read in no order: they come while the tile is turned."""
        b = self.b
        pointer = ir.IntType(8).as_pointer()
        prefetch = b.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, _INT, _INT, _INT])
        )
        with self.loop(_long(0), self.slot("positions"), 16) as at:
            to_read, keep, data = (ir.Constant(_INT, number) for number in (0, 3, 1))
            b.call(prefetch, [b.bitcast(self.at(self.own, at), pointer), to_read, keep, data])

    def transpose(self) -> None:
        def block(feature: ir.Value) -> None:
            last = self.b.sub(self.tokens, _long(1))
            rows = []
            for token in range(TILE):  # past the end the last token stands in: what comes of it is dropped
                inside = self.b.icmp_signed("<", _long(token), last)
                row = self.b.mul(self.b.select(inside, _long(token), last), self.inputs)
                rows.append(self.load(self.at(self.x, self.b.add(row, feature))))
            for offset, column in enumerate(self.transposed(rows)):
                self.store(
                    column, self.at(self.states, self.b.mul(self.b.add(feature, _long(offset)), _long(TILE))), 64
                )

        self.blocks(self.inputs, block)

    def sum(self) -> None:
        b = self.b
        with self.loop(_long(0), self.outputs) as number:
            output, start, stop = (
                b.sext(b.load(self.at(self.rows, b.add(b.mul(number, _long(3)), _long(field)))), _LONG)
                for field in range(3)
            )
            before, body, after = b.block, b.append_basic_block(), b.append_basic_block()
            bias = self.broadcast(b.load(self.at(self.biases, output)))
            b.cbranch(b.icmp_signed("<", start, stop), body, after)
            b.position_at_end(body)
            at, total = b.phi(_LONG), b.phi(_VECTOR)
            change = b.fsub(b.load(self.at(self.own, at)), b.load(self.at(self.base, at)))
            column = b.sext(b.load(self.at(self.indices, at)), _LONG)
            states = self.load(self.at(self.states, b.mul(column, _long(TILE))), 64)
            found = b.fadd(total, b.fmul(self.broadcast(change), states, ("contract",)), ("contract",))
            following = b.add(at, _long(1))
            at.add_incoming(start, before)
            at.add_incoming(following, body)
            total.add_incoming(bias, before)
            total.add_incoming(found, body)
            b.cbranch(b.icmp_signed("<", following, stop), body, after)
            b.position_at_end(after)
            whole = b.phi(_VECTOR)
            whole.add_incoming(bias, before)
            whole.add_incoming(found, body)
            self.store(whole, self.at(self.sums, b.mul(output, _long(TILE))), 64)

    def add(self) -> None:
        with self.b.if_else(self.b.icmp_signed("==", self.tokens, _long(TILE)), likely=True) as (whole, part):
            with whole:
                self.add_tokens(lambda _: nullcontext())
            with part:
                self.add_tokens(lambda token: self.b.if_then(self.b.icmp_signed("<", _long(token), self.tokens)))

    def add_tokens(self, where: Callable[[int], AbstractContextManager[Any]]) -> None:
        b = self.b

        def block(feature: ir.Value) -> None:
            rows = [
                self.load(self.at(self.sums, b.mul(b.add(feature, _long(offset)), _long(TILE))), 64)
                for offset in range(TILE)
            ]
            for token, change in enumerate(self.transposed(rows)):
                with where(token):
                    place = self.at(self.y, b.add(b.mul(_long(token), self.outputs), feature))
                    self.store(b.fadd(self.load(place), change), place)

        def forget(output: ir.Value) -> None:
            self.store(ir.Constant(_VECTOR, [0.0] * TILE), self.at(self.sums, b.mul(output, _long(TILE))), 64)

        self.blocks(self.outputs, block, forget)

    def blocks(self, width: ir.Value, block: Any, forget: Any = None) -> None:
        """All of ``width`` by 16; where it is no multiple, the last 16 once more, without what was done."""
        b = self.b
        whole = b.and_(width, _long(-TILE))
        with self.loop(_long(0), whole, TILE) as feature:
            block(feature)
        with b.if_then(b.icmp_signed("<", whole, width), likely=False):
            start = b.sub(width, _long(TILE))
            if forget is not None:
                with self.loop(start, whole) as feature:
                    forget(feature)
            block(start)

    def transposed(self, rows: list[ir.Value]) -> list[ir.Value]:
        """16 vectors of 16: halves of pairs are exchanged, at distances 1, 2, 4 and 8."""
        distance = 1
        while distance < TILE:
            low = [TILE + (lane ^ distance) if lane & distance else lane for lane in range(TILE)]
            high = [TILE + lane if lane & distance else lane | distance for lane in range(TILE)]
            for at in range(TILE):
                if not at & distance:
                    one, other = rows[at], rows[at | distance]
                    rows[at] = self.b.shuffle_vector(one, other, _lanes(low))
                    rows[at | distance] = self.b.shuffle_vector(one, other, _lanes(high))
            distance *= 2
        return rows

    @contextmanager
    def loop(self, start: ir.Value, stop: ir.Value, step: int = 1) -> Iterator[ir.Value]:
        """From ``start`` up to ``stop``, at least once."""
        b = self.b
        before, body = b.block, b.append_basic_block()
        b.branch(body)
        b.position_at_end(body)
        at = b.phi(_LONG)
        at.add_incoming(start, before)
        yield at
        following = b.add(at, _long(step))
        at.add_incoming(following, b.block)
        after = b.append_basic_block()
        b.cbranch(b.icmp_signed("<", following, stop), body, after)
        b.position_at_end(after)

    def slot(self, name: str) -> ir.Value:
        return self.b.load(self.at(self.job, _long(_FIELDS.index(name))))

    def count(self, name: str) -> ir.Value:
        """What the counter was before this thread raised it."""
        return self.b.atomic_rmw("add", self.at(self.job, _long(_FIELDS.index(name))), _long(1), "monotonic")

    def pointer(self, name: str, of: ir.Type) -> ir.Value:
        return self.b.inttoptr(self.slot(name), of.as_pointer())

    def at(self, pointer: ir.Value, offset: ir.Value) -> ir.Value:
        return self.b.gep(pointer, [offset])

    def load(self, pointer: ir.Value, align: int = 4) -> ir.Value:
        return self.b.load(self.b.bitcast(pointer, _VECTOR.as_pointer()), align=align)

    def store(self, value: ir.Value, pointer: ir.Value, align: int = 4) -> None:
        self.b.store(value, self.b.bitcast(pointer, _VECTOR.as_pointer()), align=align)

    def broadcast(self, number: ir.Value) -> ir.Value:
        first = self.b.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, ir.Constant(_INT, 0))
        return self.b.shuffle_vector(first, first, _lanes([0] * TILE))


def _long(number: int) -> ir.Constant:
    return ir.Constant(_LONG, number)


def _lanes(numbers: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(_INT, TILE), numbers)
