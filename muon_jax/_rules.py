"""The default rules, in order: which names and shapes go to Muon, under which view, and why."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import TypeAlias

from muon_jax._checks import invalid
from muon_jax._leaves import Leaf, words_of
from muon_jax._matrix_axes import MatrixAxes

MUON = "muon"
FALLBACK = "adamw"

Outcome: TypeAlias = MatrixAxes | str | None


@dataclasses.dataclass(frozen=True)
class Rule:
    """Sends the leaves whose path matches a pattern to Muon under a view, or to another label.

    A pattern is matched against the whole path, in which names are joined by `/` and Flax's final
    `.value` is left out; case does not matter. `*` stands for anything, slashes included, a
    leading `*/` also for nothing, and `{query,key}` for either word. The first rule that matches
    wins; rules of your own come before the default ones.

    Args:
        pattern: which paths, such as `"*/attn/{query,key}/kernel"`.
        to: a `MatrixAxes` sends the leaf to Muon under that view; a label, such as `"adamw"`, to
            the transformation of that name; a function of the leaf returns one of these, or None
            to let the next rule decide. Axes are those of the array as stored: write
            `rows=-2, cols=-1` for a view that also fits a scanned stack.
        why: the reason, shown by `explain`.

    Raises:
        ValueError: the label is `"muon"`, which says nothing of the view.

    Examples:
        >>> fused = Rule("*/gate_up/kernel", MatrixAxes(rows=0, cols=1, split=2))
        >>> label_params({"mlp": {"gate_up": {"kernel": jnp.ones((4, 16))}}}, rules=[fused])
        {'mlp': {'gate_up': {'kernel': 'muon'}}}
    """

    pattern: str
    to: MatrixAxes | str | Callable[[Leaf], Outcome]
    why: str = "your rule"

    def __post_init__(self):
        if not isinstance(self.pattern, str) or not self.pattern:
            raise invalid("Rule", "pattern", self.pattern, 'give a pattern such as "*/kernel"')
        if self.to == MUON:
            raise invalid("Rule", "to", MUON, "give the view itself, such as MatrixAxes(-2, -1)")
        if not (isinstance(self.to, MatrixAxes | str) or callable(self.to)):
            remedy = 'give a MatrixAxes, a label such as "adamw", or a function of the leaf'
            raise invalid("Rule", "to", self.to, remedy, TypeError)

    def __call__(self, leaf: Leaf) -> Outcome:
        """Returns the view or label for this leaf; None: the rule does not apply."""
        if not _expression(self.pattern).fullmatch("/" + "/".join(leaf.words)):
            return None
        return self.to(leaf) if callable(self.to) else self.to


@functools.cache
def _expression(pattern: str) -> re.Pattern[str]:
    text = "/".join(words_of(pattern))
    tokens = {"*": ".*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|"}
    body = "".join(tokens.get(letter, re.escape(letter)) for letter in text)
    return re.compile(f"/?{body}")


def _matrix(leaf: Leaf) -> Outcome:
    return MatrixAxes(rows=0, cols=1) if len(leaf.core) == 2 else None


def _last_two(leaf: Leaf) -> Outcome:
    return MatrixAxes(rows=-2, cols=-1) if len(leaf.core) >= 3 else None


def _transposed(leaf: Leaf) -> Outcome:
    """Torch's and Equinox's storage: outputs first, convolutions included."""
    if len(leaf.core) == 2:
        return MatrixAxes(rows=1, cols=0)
    return None


def _convolution(leaf: Leaf) -> Outcome:
    """Every patch that the filter sees is one input, whatever its spatial rank."""
    ndim = len(leaf.core)
    if ndim < 3:
        return None
    if leaf.words[-1] == "weight":
        return MatrixAxes(rows=tuple(range(1, ndim)), cols=0)
    return MatrixAxes(rows=tuple(range(ndim - 1)), cols=ndim - 1)


def _depthwise(leaf: Leaf) -> Outcome:
    ndim = len(leaf.core)
    inputs = 1 if leaf.words[-1] == "weight" else ndim - 2
    return FALLBACK if ndim >= 3 and leaf.core[inputs] == 1 else None


def _no_matrix(leaf: Leaf) -> Outcome:
    size = math.prod(leaf.core)
    return FALLBACK if size == max(leaf.core, default=1) else None


def _heads_out(leaf: Leaf) -> Outcome:
    return MatrixAxes(rows=0, cols=(1, 2)) if len(leaf.core) == 3 else None


def _heads_in(leaf: Leaf) -> Outcome:
    return MatrixAxes(rows=(0, 1), cols=2) if len(leaf.core) == 3 else None


def _routes_tokens(leaf: Leaf) -> Outcome:
    """A gate is a router where experts stand beside it; a SwiGLU gate has `up` and `down`."""
    return FALLBACK if any(name.startswith("expert") for name in leaf.family) else None


ATTENTION_IN = (
    "{query,key,value,q,k,v,q_proj,k_proj,v_proj,wq,wk,wv,query_proj,key_proj,value_proj}"
)
ATTENTION_OUT = "{out,output,o,o_proj,wo,out_proj,c_proj,proj,attention_output,output_proj}"
ARRAY = "{kernel,weight,w}"
HEADS = "{*head,*logits,*classifier,unembed,to_logits,readout,w_u}"

DEFAULT_RULES = (
    Rule("*", _no_matrix, "vectors and scalars are no matrices"),
    Rule("*/{*bias,scale,*_scale,gamma,beta,offset,bq,bk,bv}", FALLBACK, "biases and gains"),
    Rule("*/{*norm*,ln*,bn*}/{weight,g,b}", FALLBACK, "gains of a norm"),
    Rule(
        "*/{pos*emb*,*_pos_emb*,pos,wpe,*_token,*_tokens,latents,queries}",
        FALLBACK,
        "learned positions and tokens: rows looked up or added, no map of a hidden state",
    ),
    Rule(
        "*/{wpe,wte,*embed,*embedding,*embeddings,*embedder,emb,tok_emb}/weight",
        FALLBACK,
        "embedding: a table of rows, each trained when its token comes",
    ),
    Rule(
        "*/{*embedding,*embeddings,*embed,*embedding_table,wte,w_e}",
        FALLBACK,
        "embedding: a table of rows, each trained when its token comes",
    ),
    Rule(f"*/{HEADS}", FALLBACK, "output head: one column for each class"),
    Rule(f"*/{HEADS}/{ARRAY}", FALLBACK, "output head: one column for each class"),
    Rule(f"*/router/{ARRAY}", FALLBACK, "router: an output head over experts"),
    Rule(f"*/gate/{ARRAY}", _routes_tokens, "router: an output head over experts"),
    Rule(f"*/{ARRAY}", _depthwise, "depthwise convolution: one filter for each channel, no matrix"),
    Rule("*/*expert*/*", _last_two, "experts: each a matrix of its own"),
    Rule(
        f"*/{ATTENTION_IN}/{{kernel,w}}",
        _heads_out,
        "attention input: all heads side by side are the outputs",
    ),
    Rule(
        f"*/{ATTENTION_OUT}/{{kernel,w}}",
        _heads_in,
        "attention output: all heads side by side are the inputs",
    ),
    Rule(f"*/*conv*/{ARRAY}", _convolution, "convolution: each patch flattened is one input"),
    Rule(
        "*",
        lambda leaf: (
            _convolution(leaf)
            if len(leaf.core) > 3 and leaf.words[-1] in ("kernel", "weight", "w")
            else None
        ),
        "convolution: each patch flattened is one input",
    ),
    Rule(
        "*/{weight,weight_ih,weight_hh,in_proj_weight}",
        _transposed,
        "weight stored as (outputs, inputs)",
    ),
    Rule("*", _matrix, "a matrix stored as (inputs, outputs)"),
)
