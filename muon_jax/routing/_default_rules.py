"""The default rules, in order: where parameters of known names and shapes go, and why.

The first rule that applies wins. The last one applies to every array and gives candidate views.
"""

from collections.abc import Callable

from muon_jax.routing import _fused as fused
from muon_jax.routing import _not_matrices as exclusion
from muon_jax.routing import _plain as plain
from muon_jax.routing import _vocabulary as vocabulary
from muon_jax.routing._context import Leaf
from muon_jax.routing._rule import FALLBACK, Outcome, Rule
from muon_jax.routing._vocabulary import EMBEDDING, WEIGHT


def layer(names: str) -> str:
    """Returns the pattern for the weight of a layer, or a bare array, with one of these names."""
    return f"*/{{{names}}}{{,/{WEIGHT}}}"


def table(names: str) -> str:
    """Returns the pattern for a table of one of these names; a `kernel` is never a table."""
    return f"*/{{{names}}}{{,/weight,/w,/embedding,/embeddings}}"


GAIN = "*bias,bias_*,*scale,gamma,beta,offset,b?,b_?,*_b,*slope,*magnitude*,*scale_shift_table"
ELEMENTWISE = (
    "a_log,log_a,log_dt,log_step,log_lambda*,dt_bias,{,*_}{sigma,rho,std,logstd,log_std,logvar,"
    "log_var,variance},sigma_?,time_{decay,first,faaaa,mix*,maa_?}"
)
POSITION = (
    "pos,pe,wpe,w_pos,{pos,*_pos,*posit*,*rel,*relative*}*{emb,embed,embeds,embedding,embeddings,"
    "embedder,encoding,encodings,table,bias,tokens},*rel_pos*,embed_positions,position*"
)
TOKENS = (
    "*token,*tokens,latent,*latents,latent_array,*queries,*prompt,*prompts,*slots,*inducing*,"
    "*prototypes,*memory_bank,h0,c0"
)
HEAD = (
    "head,*_head,*_head_{dense,linear,fc,out,output},lmhead,logit*,*_logit*,classifier,"
    "*_classifier,class_embed,*unembed*,w_u,readout,predictions,vocab_proj*,lm_proj,*qa_outputs,"
    "score"
)
GATE = "gate,gating,gating_network,switch,wg,w_gate,w_noise,noise_linear"
DEPTHWISE = "*depthwise*,dwconv*,dw_conv*,*_dwconv*,*_dw_conv*"
OVER_TIME = "*conv1d*,*conv1_d*,*conv_1d*,*short_conv*,*causal_conv*"
GATE_AND_UP = (
    "w12,gate_up,gate_up?,gate_up_*,gate_and_up*,up_gate*,up_and_gate*,gateup*,w13,gating_einsum,"
    "wi_fused"
)
RECURRENT = (
    "dense_i,dense_h,weight_ih*,weight_hh*,w_i,w_h,ih,hh,i2h,h2h,recurrent_kernel,*lstm*,*gru*,"
    "input_to_hidden,hidden_to_hidden"
)

WHY = {
    "vector": "has at most one axis longer than one",
    "bias or gain": "acts on every channel alone",
    "elementwise": "a rate or a scale for every entry",
    "embedding": "looked up, or added to activations; so too if tied to the head",
    "learned tokens": "concatenated with activations, or a state",
    "head": "its outputs are logits, one column a class",
    "router": "its outputs are logits, one column an expert or a code",
    "depthwise convolution": "filters every channel alone",
    "broadcast table": "broadcast along its first axis: no map",
    "fused attention": "query, key and value are each a matrix",
    "fused gate and up": "gate and up are each a matrix",
    "fused recurrent gates": "every gate is a matrix",
    "LoRA factor": "each factor of the low-rank change is a matrix",
    "experts": "every expert is a matrix",
    "attention input": "all heads together are its outputs",
    "attention output": "all heads together are its inputs",
    "convolution": "its input is a flattened patch",
    "outputs by bias": "its bias has the output axes",
    "matrix": "inputs and outputs have an axis each",
    "ambiguous": "no rule knows it, and several views fit",
}
"""The reason for the outcome of a rule, by the name of the rule."""


def _rules(*rows: tuple[str, str, Callable[[Leaf], Outcome] | str]) -> tuple[Rule, ...]:
    """Makes rules of names, patterns of plain names, and outcomes."""
    return tuple(Rule(pattern, to, WHY[name], name) for name, pattern, to in rows)


_NORM = f"*/{vocabulary.NORM}{{,/{vocabulary.NORM_VECTOR}}}"
_END_OF_HEAD = f"*/{{{vocabulary.HEADS}}}/{{{vocabulary.LAST},0,layers/0,layers}}/{WEIGHT}"
_TABLES = (
    f"{table(f'{EMBEDDING},{POSITION}')},*/*_pos,*/{{{EMBEDDING}}}/0/{{weight,w}},"
    f"*/{{embedding,embeddings}},*/{vocabulary.TABLES}/*"
)
_QKV = layer(f"{vocabulary.FUSED_QUERY_KEY_VALUE},query_key_value")
_QUERY = layer(f"{vocabulary.ATTENTION_INPUT},{vocabulary.LATENT_UP}")

NOT_FOR_MUON = _rules(
    ("vector", "*", exclusion.no_matrix),
    ("bias or gain", f"*/{{{GAIN}}},{_NORM}", exclusion.gain),
    ("bias or gain", "*/b", exclusion.letter_b),
    ("elementwise", f"*/{{{ELEMENTWISE}}}", FALLBACK),
    ("embedding", _TABLES, exclusion.table),
    ("learned tokens", table(TOKENS), exclusion.table),
    ("head", layer(HEAD), exclusion.logits),
    ("head", _END_OF_HEAD, exclusion.end_of_head),
    ("head", "*", exclusion.of_vocabulary),
    ("head", layer("*"), exclusion.only_dense),
    ("router", f"{layer('*router*,moe_gate,moegate*')},*/*router*/*", FALLBACK),
    ("router", layer(GATE), exclusion.gate_of_experts),
    ("router", layer("*"), exclusion.choice_of_codes),
    ("depthwise convolution", layer(DEPTHWISE), FALLBACK),
    ("depthwise convolution", layer(OVER_TIME), exclusion.taps_by_channel),
    ("depthwise convolution", f"*/{{{WEIGHT},*conv*,*_kernel}}", exclusion.single_channel),
    ("broadcast table", "*", exclusion.broadcast),
)
"""Parameters that are no matrices, or matrices that should not be orthogonalised."""

FUSED = _rules(
    ("fused attention", _QKV, fused.query_key_value),
    ("fused attention", layer(vocabulary.FUSED_KEY_VALUE), fused.key_value),
    ("fused attention", f"*/{{{vocabulary.ATTENTION}}}/*/{WEIGHT}", fused.three_squares),
    ("fused gate and up", layer(f"{GATE_AND_UP},wi,w_in,fc1"), fused.gate_up_axis),
    ("fused gate and up", layer(GATE_AND_UP), fused.gate_and_up),
    ("fused recurrent gates", f"{layer(RECURRENT)},*/*lstm*/linear/w", fused.recurrent_gates),
    ("fused gate and up", layer("*"), fused.twice_as_wide),
)
"""Arrays that hold several matrices."""

WEIGHTS = _rules(
    ("LoRA factor", layer("*lora_{a,b,down,up},*lora*/{a,b}"), plain.low_rank_factor),
    ("experts", "*", plain.expert_stack),
    ("attention input", _QUERY, plain.attention_input),
    ("attention output", layer(vocabulary.ATTENTION_OUTPUT), plain.attention_output),
    ("convolution", layer("*conv*"), plain.flattened_patch),
    ("convolution", f"*/{{{WEIGHT},*_kernel}}", plain.filter_shaped),
    ("outputs by bias", f"*/{WEIGHT}", plain.by_bias),
    ("matrix", "*", plain.matrix),
)
"""Arrays that hold one matrix, or one for every layer of a stack."""

UNKNOWN = _rules(("ambiguous", "*", plain.candidates))

DEFAULT_RULES = (*NOT_FOR_MUON, *FUSED, *WEIGHTS, *UNKNOWN)
