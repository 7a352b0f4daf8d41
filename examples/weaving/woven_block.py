"""A tensor-parallel transformer of one's own, in plain PyTorch, woven: one half of the tokens computes while the ranks
exchange the other. `python examples/weaving/woven_block.py` runs it on two processes over gloo.
"""

import socket

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tokenweave.communicators import Communicator, TorchCommunicator
from tokenweave.kernels import ResidualNorms
from tokenweave.lanes import LaneExecutor
from tokenweave.plan import Op, Plan, Step, plan_forward

HIDDEN, HEADS, LAYERS, TOKENS, EPS = 64, 4, 3, 96, 1e-6


class Block(nn.Module):
    """This rank's part of a block: its heads, its columns of the MLP. What it returns the ranks have yet to sum."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.heads = HEADS // ranks
        width = self.heads * HIDDEN // HEADS
        self.qkv = nn.Linear(HIDDEN, 3 * width, bias=False)  # column-parallel
        self.o = nn.Linear(width, HIDDEN, bias=False)  # row-parallel
        self.up = nn.Linear(HIDDEN, 4 * HIDDEN // ranks, bias=False)  # column-parallel
        self.down = nn.Linear(4 * HIDDEN // ranks, HIDDEN, bias=False)  # row-parallel
        self.attention_norm = nn.RMSNorm(HIDDEN, EPS)
        self.mlp_norm = nn.RMSNorm(HIDDEN, EPS)

    def attention(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(tokens, HIDDEN) after the keys of `past`: the partial sum, and the keys and values so far."""
        q, *kv = self.qkv(x).view(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)
        seen = torch.stack(kv) if past is None else torch.cat([past, torch.stack(kv)], dim=2)
        queries, keys = q.shape[1], seen.shape[2]
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        attended = F.scaled_dot_product_attention(q, seen[0], seen[1], attn_mask=mask)
        return self.o(attended.transpose(0, 1).flatten(1)), seen

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


def sequential(blocks: list[Block], norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Computes the result that the woven run has to give."""
    for block in blocks:
        partial, _ = block.attention(block.attention_norm(x))
        dist.all_reduce(partial)
        x = x + partial
        partial = block.mlp(block.mlp_norm(x))
        dist.all_reduce(partial)
        x = x + partial
    return norm(x)


class Woven:
    """One forward pass: what each operation of the plan means to these blocks. Everything is kept by part."""

    def __init__(
        self, blocks: list[Block], norm: nn.RMSNorm, x: Tensor, plan: Plan, ranks: Communicator
    ) -> None:
        self.blocks, self.ranks, self.x = blocks, ranks, x
        self.norms = [n for block in blocks for n in (block.attention_norm, block.mlp_norm)] + [norm]
        self.rows = [slice(part.start, part.stop) for part in plan.parts]
        self.hidden = [torch.empty(0)] * len(plan.parts)  # a partial sum, or what was normed
        self.residual = [torch.zeros(len(part), HIDDEN) for part in plan.parts]
        self.past: dict[int, Tensor] = {}  # keys and values of the first part, by layer

    def embed(self, step: Step) -> None:  # the ranks' parts are summed: the input comes from one of them
        rows = self.x[self.rows[step.part]]
        self.hidden[step.part] = rows if self.ranks.rank == 0 else torch.zeros_like(rows)

    def attention(self, step: Step) -> None:
        before = self.past.get(step.layer) if step.part == 1 else None
        self.hidden[step.part], seen = self.blocks[step.layer].attention(self.hidden[step.part], before)
        self.past.setdefault(step.layer, seen)

    def mlp(self, step: Step) -> None:
        self.hidden[step.part] = self.blocks[step.layer].mlp(self.hidden[step.part])

    def reduce_norm(self, step: Step) -> None:
        norms = ResidualNorms(self.norms[step.norm].weight, EPS)
        hidden, residual = self.hidden[step.part], self.residual[step.part]
        self.hidden[step.part] = self.ranks.all_reduce_rms_norm(hidden, residual, norms)


def woven(blocks: list[Block], norm: nn.RMSNorm, x: Tensor, split: int, ranks: Communicator) -> Tensor:
    plan = plan_forward(len(blocks), len(x), split)
    run = Woven(blocks, norm, x, plan, ranks)
    handlers = {
        op: getattr(run, op.label, lambda step: None) for op in Op
    }  # no logits here, nothing to gather
    with LaneExecutor(
        torch.inference_mode, on_failure=lambda failure: ranks.abort(repr(failure))
    ) as executor:
        executor.run(plan, handlers)
    return torch.cat(run.hidden)


@torch.inference_mode()
def main(rank: int, size: int, port: int) -> None:
    torch.manual_seed(rank)  # each rank has weights of its own
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    blocks, norm = [Block(size) for _ in range(LAYERS)], nn.RMSNorm(HIDDEN, EPS)
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))
    expected = sequential(blocks, norm, x)
    with TorchCommunicator() as ranks:
        for split in (1, TOKENS // 2, TOKENS - 1):
            torch.testing.assert_close(woven(blocks, norm, x, split, ranks), expected, rtol=1e-4, atol=1e-5)
            if rank == 0:
                print(f"split at {split} of {TOKENS}: woven = sequential")
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(main, args=(2, port), nprocs=2)
