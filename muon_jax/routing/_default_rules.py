"""The default rules, in order: where parameters of known names and shapes go, and why.

The first rule that applies wins, and the last one gives up: it shows the readings.
"""

from muon_jax.routing import _attention as attention
from muon_jax.routing import _convolutions as filters
from muon_jax.routing import _gates as gates
from muon_jax.routing import _heads as heads
from muon_jax.routing import _not_matrices as exclusion
from muon_jax.routing import _plain as reading
from muon_jax.routing._rule import FALLBACK, Rule
from muon_jax.routing._vocabulary import (
    ATTENTION_INPUT,
    ATTENTION_OUTPUT,
    EMBEDDING,
    FUSED_KEY_VALUE,
    FUSED_QUERY_KEY_VALUE,
    LATENT_UP,
    NORM,
    NORM_VECTOR,
    WEIGHT,
)


def layer(names: str) -> str:
    """The weight of a layer of one of these names, or a bare array so called."""
    return f"*/{{{names}}}{{,/{WEIGHT}}}"


def table(names: str) -> str:
    """As `layer`, but without `kernel`: a kernel maps features, it is not looked up."""
    return f"*/{{{names}}}{{,/weight,/w,/embedding,/embeddings}}"


GAIN = "*bias,bias_*,*scale,gamma,beta,offset,b,b?,b_?,*slope,*magnitude*,*scale_shift_table"
STATE_SPACE = "a_log,log_a,log_dt,log_step,log_lambda*,dt_bias"
POSITION = (
    "pos,pe,wpe,w_pos,{pos,*_pos,*posit*,*rel,*relative*}*{emb,embed,embeds,embedding,embeddings,"
    "embedder,encoding,encodings,table,bias,tokens},*rel_pos*,embed_positions,position*"
)
TOKENS = "*token,*tokens,latent,*latents,latent_array,*queries,*prompt,*prompts,*slots"
HEAD = (
    "*head,*logit*,*classifier,class_embed,*unembed*,w_u,readout,predictions,vocab_proj*,lm_proj,"
    "*qa_outputs,score"
)
LAST = (
    "out,output,outputs,*_out,out_proj,output_*,decoder,generator,proj,predictions,final*,linear*,"
    "dense*,fc*,last_layer"
)
GATE = "gate,gating,gating_network,switch,wg,w_gate,w_noise,noise_linear"
CHANNELWISE = "*depthwise*,dwconv*,dw_conv*,*conv1d*,*conv_1d*,*short_conv*,*causal_conv*"
GATE_AND_UP = (
    "gate_up,gate_up?,gate_up_*,gate_and_up*,up_gate*,up_and_gate*,gateup*,w13,gating_einsum,"
    "wi_fused"
)
RECURRENT = (
    "dense_i,dense_h,weight_ih*,weight_hh*,w_i,w_h,ih,hh,i2h,h2h,recurrent_kernel,*lstm*,*gru*"
)

NUMBER = "0"
"""Every name that is a number: paths are compared with a 0 for each."""
NUMBERED = f"{{{NUMBER},layers/{NUMBER},layers_*}}"
"""Layers of `Sequential`, of a list or of `eqx.nn.MLP`."""

LOGITS = "its outputs are logits, one column a class"

NOT_FOR_MUON = (
    Rule("*", exclusion.no_matrix, "has at most one axis longer than one", "vector"),
    Rule(
        f"*/{{{GAIN}}},*/{NORM}{{,/{NORM_VECTOR}}}",
        exclusion.gain,
        "acts on every channel alone",
        "bias or gain",
    ),
    Rule(
        f"*/{WEIGHT}",
        exclusion.elementwise,
        "its bias has its whole shape",
        "bias or gain",
    ),
    Rule(f"*/{{{STATE_SPACE}}}", FALLBACK, "rates of a state space, each its own", "state space"),
    Rule(
        f"{table(POSITION)},*/*_pos",
        exclusion.position,
        "looked up, or added to activations",
        "position table",
    ),
    Rule(
        f"{table(EMBEDDING)},*/{{embedding,embeddings}},*/{{{EMBEDDING}}}/{NUMBER}/{{weight,w}}",
        exclusion.lookup,
        "rows are looked up, each trained when it occurs; so too if tied to the head",
        "embedding",
    ),
    Rule(
        table(TOKENS),
        exclusion.learned_tokens,
        "a state of its own, no map of one",
        "learned tokens",
    ),
    Rule(layer(HEAD), heads.logits, LOGITS, "head"),
    Rule(
        f"*/{{head,heads,classifier,lm_heads,*logit*}}/{{{LAST}}}/{WEIGHT},"
        f"*/{{head,classifier,lm_heads,*logit*}}/{NUMBERED}/{WEIGHT}",
        heads.end_of_head,
        LOGITS,
        "head",
    ),
    Rule(
        f"*/{{{heads.NAMED_HEADS}}}/{{{LAST},{NUMBERED}}}/{WEIGHT}",
        heads.end_of_named_head,
        LOGITS,
        "head",
    ),
    Rule(
        layer(LAST),
        heads.vocabulary,
        "has an output for every row of the embedding: logits",
        "head",
    ),
    Rule(layer("*"), heads.only_dense, "the one dense layer among convolutions: logits", "head"),
    Rule(
        f"{layer('*router*,moe_gate,moegate*')},*/*router*/*",
        FALLBACK,
        "its outputs are logits, one column an expert",
        "router",
    ),
    Rule(
        layer(GATE),
        exclusion.gate_of_experts,
        "experts stand beside it: its outputs are their logits",
        "router",
    ),
    Rule(
        layer(CHANNELWISE),
        filters.taps_by_channel,
        "filters every channel alone",
        "depthwise convolution",
    ),
    Rule(
        f"*/{{{WEIGHT},*conv*,*_kernel}}",
        filters.single_channel,
        "every filter sees one channel",
        "depthwise convolution",
    ),
    Rule("*", exclusion.broadcast, "broadcast along its first axis: no map", "broadcast table"),
)
"""No matrices, or matrices that should not be orthogonalised."""

FUSED = (
    Rule(
        layer(FUSED_QUERY_KEY_VALUE),
        attention.fused_query_key_value,
        "query, key and value are each a matrix",
        "fused attention",
    ),
    Rule(
        layer(FUSED_KEY_VALUE),
        attention.fused_key_value,
        "key and value are each a matrix",
        "fused attention",
    ),
    Rule(
        layer("query_key_value"),
        attention.fused_in_every_head,
        "every head may hold its own query, key and value: an error asks",
        "fused by head",
    ),
    Rule(
        layer(f"{GATE_AND_UP},wi,w_in,fc1"),
        gates.paired,
        "gate and up are each a matrix",
        "fused gate and up",
    ),
    Rule(
        layer(GATE_AND_UP),
        gates.gate_and_up,
        "gate and up are each a matrix",
        "fused gate and up",
    ),
    Rule(
        layer("w12,wi,w_in,fc1,c_fc,up,up_proj,linear1,dense1,dense_1"),
        gates.gated_up,
        "twice as wide as the way down: gate and up are each a matrix",
        "fused gate and up",
    ),
    Rule(
        layer(f"net_0/proj,net/{NUMBER}/proj"),
        gates.gated_net,
        "twice as wide as the way down: gate and up are each a matrix",
        "fused gate and up",
    ),
    Rule(
        layer("in_proj"),
        gates.gated_input,
        "input and gate are each a matrix",
        "fused gated input",
    ),
    Rule(
        layer(RECURRENT),
        gates.recurrent_gates,
        "every gate is a matrix",
        "fused recurrent gates",
    ),
    Rule("*/*lstm*/linear/w", gates.four_gates, "every gate is a matrix", "fused recurrent gates"),
)
"""Several matrices in one array."""

WEIGHTS = (
    Rule(
        layer("*lora_{a,b,down,up},*lora*/{a,b}"),
        reading.low_rank_factor,
        "each factor of the low-rank change is a matrix",
        "LoRA factor",
    ),
    Rule("*", reading.expert_stack, "every expert is a matrix", "experts"),
    Rule(
        layer(f"{ATTENTION_INPUT},{LATENT_UP}"),
        attention.attention_input,
        "all heads together are its outputs",
        "attention input",
    ),
    Rule(
        layer(ATTENTION_OUTPUT),
        attention.attention_output,
        "all heads together are its inputs",
        "attention output",
    ),
    Rule(layer("*conv*"), filters.convolution, "its input is a flattened patch", "convolution"),
    Rule(
        f"*/{{{WEIGHT},*_kernel}}",
        filters.filter_shaped,
        "its input is a flattened patch",
        "convolution",
    ),
    Rule(f"*/{WEIGHT}", reading.by_bias, "its bias has the output axes", "outputs by bias"),
    Rule("*", reading.matrix, "inputs and outputs have an axis each", "matrix"),
)
"""One matrix an array, or one a layer of a stack."""

UNKNOWN = Rule("*", reading.several, "no rule knows it, and it has several readings", "ambiguous")

DEFAULT_RULES = (*NOT_FOR_MUON, *FUSED, *WEIGHTS, UNKNOWN)
