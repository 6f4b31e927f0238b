//! Vision transformers, as in torchvision.

use super::graph::{Graph, Value, window};

const LAYER_NORM_EPSILON: f32 = 1e-6;

struct Sizes {
    patch: usize,
    layers: usize,
    heads: usize,
    features: usize,
    mlp: usize,
}

pub(super) fn vit_b_16(graph: &mut Graph, images: Value, classes: usize) -> Value {
    let sizes = Sizes { patch: 16, layers: 12, heads: 12, features: 768, mlp: 3072 };
    transformer(graph, images, sizes, classes)
}

pub(super) fn vit_tiny(graph: &mut Graph, images: Value, classes: usize) -> Value {
    let sizes = Sizes { patch: 8, layers: 2, heads: 4, features: 64, mlp: 128 };
    transformer(graph, images, sizes, classes)
}

/// With the usual sizes, unless tensors have others.
fn transformer(graph: &mut Graph, images: Value, usual: Sizes, classes: usize) -> Value {
    let sizes = &Sizes {
        patch: graph.size("conv_proj.weight", 2, usual.patch),
        features: graph.size("class_token", 2, usual.features),
        mlp: graph.size("encoder.layers.encoder_layer_0.mlp.0.weight", 0, usual.mlp),
        ..usual
    };
    let (patch, shape) = (sizes.patch, images.shape);
    if !shape.height.is_multiple_of(patch) || !shape.width.is_multiple_of(patch) {
        let what =
            format!("patches of {patch} × {patch} do not fill images of {} × {}", shape.height, shape.width);
        graph.misfit("conv_proj", what);
    }
    let x = graph.conv("conv_proj", images, sizes.features, window(patch, patch, 0));
    let mut x = graph.tokens("class_token", "encoder.pos_embedding", x);
    for i in 0..sizes.layers {
        x = encoder_layer(graph, &format!("encoder.layers.encoder_layer_{i}"), x, sizes);
    }
    let x = graph.layer_norm("encoder.ln", x, LAYER_NORM_EPSILON);
    let x = graph.class_token(x);
    graph.linear("heads.head", x, classes)
}

fn encoder_layer(graph: &mut Graph, name: &str, input: Value, sizes: &Sizes) -> Value {
    let layer = |layer| format!("{name}.{layer}");
    let x = graph.layer_norm(&layer("ln_1"), input, LAYER_NORM_EPSILON);
    let x = graph.joint_projection(&layer("self_attention.in_proj"), x);
    let x = graph.attention(&layer("self_attention"), x, sizes.heads);
    let x = graph.linear(&layer("self_attention.out_proj"), x, sizes.features);
    let attended = graph.add(&layer("self_attention.add"), x, input);

    let x = graph.layer_norm(&layer("ln_2"), attended, LAYER_NORM_EPSILON);
    let x = graph.linear(&layer("mlp.0"), x, sizes.mlp);
    let x = graph.gelu(x);
    let x = graph.linear(&layer("mlp.3"), x, sizes.features);
    graph.add(&layer("mlp.add"), x, attended)
}
