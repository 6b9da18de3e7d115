"""The names that libraries give to the same thing, as patterns of plain names.

A plain name is one word of a path in snake case, without a number that Flax adds:
`MultiHeadAttention_0` becomes `multi_head_attention`, and `W_Q` becomes `w_q`.
"""

import functools
import re

from muon_jax.trees._patterns import Words, matches

WEIGHT = "{kernel,weight,weights,w,kernel_v,weight_v}"
"""Last words that only say "the array of this layer"; the word before them names the layer."""

WRAPPER = "value,raw_value,array,real,imag,imaginary,v,direction,original?,args,0"
"""Words below the name of a parameter: boxes, parts of a complex array, weight normalization."""

STACK_AXIS = "{layer,layers,block,blocks,stage,stages,scan,stack,exp,expert,experts}"
"""Logical axis names along which a layer, or an expert, is only repeated."""

STACK_CONTAINER = "{layer,block,stage,stack,repeat,group}s,*scan*"
"""Containers that hold a stack when their children are not numbered."""

EMBEDDING = (
    "wte,w_e,tok,*_tok,word,words,lookup,table,*emb,*embs,shared,embed_*,*embed,*embeds,"
    "*embedding,*embeddings,*embedder,*embedding_table,*embedding*_list,emb_l,*codebook*,*vocab"
)
"""Tables whose rows are looked up, as a bare array or as the weight of a layer (not a `kernel`)."""

TABLES = "{embeddings,embeds,*embedding_bags,*embedding_tables,lookup_tables}"
"""Containers of embedding tables."""

NORM = "{*norm*,ln,ln?,ln_*,*_ln,bn,bn?,bn_*,*_bn,gn,gn_*}"
NORM_VECTOR = "{scale,weight,gamma,bias,beta,b,g,offset}"
PROJECTION = "*{proj,projection,linear,dense,patch}*"
"""Layers that are matrices even where their name also holds a word for a norm or a table."""

DENSE = (
    "dense,dense?,dense_*,linear,linear?,linear_*,fc,fc?,fc_*,mlp,wi,wi_*,w1,w2,w3,w_in,w_out,"
    "{up,down,gate}_proj,c_fc"
)
"""Layers whose weight is a matrix in every library, so that a third axis repeats it."""

_SUFFIX = "{,_w,_proj,_projection,_einsum,_dense,_lin,_linear,_kernel,_weight}"
_PREFIX = "{,w,w_,to_,c_,linear_}"
QUERY, KEY, _VALUE = (f"{_PREFIX}{{{of}}}{_SUFFIX}" for of in ("q,query", "k,key", "v,value"))
ATTENTION_INPUT = f"{QUERY},{KEY},{_VALUE}"
FUSED_KEY_VALUE = f"{{,w,w_,to_,c_}}kv{_SUFFIX},key_value{_SUFFIX}"
FUSED_QUERY_KEY_VALUE = f"*qkv{_SUFFIX},c_attn,*att*/in_proj,*att*/in_proj_weight"
ATTENTION_OUTPUT = (
    f"{{,w,w_,to_,c_,attn_,attention_,linear_}}{{o,out,output}}{_SUFFIX},"
    "proj,c_proj,attn_proj,attn_vec_einsum"
)
ATTENTION = "*attn*,*attention*"
EXPERTS = "*expert*,*moe*,*mo_e*"
LATENT_UP = "{q,k,v,kv}_{b,up}{,_proj},w{q,k,v,kv}_b"
"""Up-projections of multi-head latent attention: from a latent to all heads."""

HEAD_MODULE = "head,heads,classifier,lm_heads,logit*,*_logit*"
HEADS = f"{HEAD_MODULE},*_head,*_classifier,head_*"
"""Modules of heads; those named after one may as well be a part of the network."""

LAST = (
    "out,output,outputs,*_out,out_proj,output_*,decoder,generator,proj,predictions,final*,linear*,"
    "dense*,fc*,last_layer"
)
"""Usual names of a last layer."""

_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_COUNT = re.compile(r"(?<=..)_\d+$")


@functools.cache
def plain_name(word: str) -> str:
    """Returns a word of a path in snake case, without the number that Flax adds."""
    return "0" if word.isdigit() else _COUNT.sub("", _HUMP.sub("_", word).lower())


def layer_of(names: Words, arrays: str = WEIGHT) -> Words:
    """Returns the names of the layer: without a final `kernel` and the like."""
    return names[:-1] if matches(arrays, names[-1]) else names


def is_norm(layer: str) -> bool:
    """Returns whether a layer is a norm, and not a projection named after one (`norm_proj`)."""
    return matches(NORM, layer) and not matches(PROJECTION, layer)


def biases_of(words: Words, name: str) -> tuple[Words, ...]:
    """Returns the words that the bias of a weight may have, given the plain name of the weight."""
    *parent, last = words
    if matches(WEIGHT, name):
        count = "".join(_COUNT.findall(last))
        return (*parent, f"bias{count}"), (*parent, f"b{count}")
    swapped = re.sub(r"(^|_)w(?=_|\d*$)", r"\1b", last.replace("weight", "bias"))
    return (*parent, f"{last}_bias"), *([(*parent, swapped)] if swapped != last else [])
