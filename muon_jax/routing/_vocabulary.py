"""Names of parameters: the words that libraries use for the same thing."""

from collections.abc import Collection

from muon_jax.trees._patterns import Words, matches

WEIGHT = "{kernel,weight,weights,w}"
"""Last words that say only "the array of this layer"; the word before names the layer."""

STACK_AXIS = "{layer,layers,block,blocks,stage,stages,scan,stack,exp,expert,experts}"
"""Logical axis names along which a layer, or an expert, is only repeated."""

STACK_CONTAINER = "{layer,block,stage,stack,repeat,group}s,*scan*"
"""Containers that hold a stack when their children are not numbered."""

EMBEDDING = (
    "wte,w_e,tok,*_tok,word,words,lookup,table,*emb,*embs,shared,embed_*,*embed,*embeds,"
    "*embedding,*embeddings,*embedder,*embedding_table,*embedding*_list,emb_l,*codebook*,*vocab"
)
"""Tables whose rows are looked up, as a bare array or as the weight of a layer (not a `kernel`)."""

NORM = "{*norm*,ln,ln?,ln_*,*_ln,bn,bn?,bn_*,*_bn,gn,gn_*}"
NORM_VECTOR = "{scale,weight,gamma,bias,beta,b,g,offset}"

DENSE = (
    "dense,dense_*,linear,linear?,linear_*,fc,fc?,fc_*,mlp,wi,wi_*,w1,w2,w3,w_in,w_out,"
    "{up,down,gate}_proj,c_fc"
)
"""Layers whose weight is a matrix in every library, so that a third axis repeats it."""

_SUFFIX = "{,_w,_proj,_projection,_einsum,_dense,_lin,_linear,_kernel,_weight}"
ATTENTION_INPUT = f"{{,w,w_,to_,c_,linear_}}{{q,k,v,query,key,value}}{_SUFFIX}"
FUSED_KEY_VALUE = f"{{,w,w_,to_,c_}}kv{_SUFFIX},key_value{_SUFFIX}"
FUSED_QUERY_KEY_VALUE = (
    f"{{,w,w_,to_,c_,attn_}}qkv{_SUFFIX},c_attn,*att*/in_proj,*att*/in_proj_weight"
)
ATTENTION_OUTPUT = (
    f"{{,w,w_,to_,c_,attn_,attention_,linear_}}{{o,out,output}}{_SUFFIX},"
    "proj,c_proj,attn_proj,attn_vec_einsum"
)
ATTENTION = "*attn*,*attention*"
EXPERTS = "*expert*,*moe*"
LATENT_UP = "{q,k,v,kv}_{b,up}{,_proj},w{q,k,v,kv}_b"
"""Up-projections of multi-head latent attention: from a latent to all heads."""


def place_of(words: Words, arrays: str = WEIGHT) -> Words:
    """The words down to a layer and its name: without a final `kernel` and the like."""
    return words[:-1] if matches(arrays, words[-1]) else words


def biases_of(place: Words) -> tuple[Words, ...]:
    """What the bias of a layer may be called."""
    return (*place, "bias"), (*place, "b")


def is_norm(layer: str) -> bool:
    """Tells a norm by its name from a map that is called after one, such as `norm_proj`."""
    return matches(NORM, layer) and not matches("*_{proj,projection,linear,dense}", layer)


def names_outputs_first(words: Words) -> bool:
    """Tells whether an array has the name under which torch and Equinox store outputs first."""
    return matches("weight,weights,weight_*,*_weight", words[-1])


def hides_bias(words: Words, hidden: Collection[Words]) -> bool:
    """Tells whether the bias of the layer of a weight is among what is hidden."""
    place = place_of(words)
    return place != words and any(bias in hidden for bias in biases_of(place))
