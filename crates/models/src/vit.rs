use crate::{Classifier, ModelInfo, ModelSpec, Size};
use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Dropout, DropoutConfig, Gelu, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use srigl_burn::{Lower, Lowering, SparseConv2d, SparseLinear, Value, fused};

/// Configuration of [`VisionTransformer`]: by default ViT-B/16.
#[derive(Config, Debug)]
pub struct VitConfig {
    /// Channels of an image.
    #[config(default = 3)]
    pub channels: usize,
    /// Height and width of an image; multiples of `patch`.
    #[config(default = "[224, 224]")]
    pub image: [usize; 2],
    /// Height and width of a patch.
    #[config(default = 16)]
    pub patch: usize,
    /// Encoder layers.
    #[config(default = 12)]
    pub layers: usize,
    /// Heads of each attention; they divide `features`.
    #[config(default = 12)]
    pub heads: usize,
    /// Numbers of a token, `d`.
    #[config(default = 768)]
    pub features: usize,
    /// Neurons of each perceptron's inner layer.
    #[config(default = 3072)]
    pub mlp: usize,
    /// Number of classes.
    #[config(default = 1000)]
    pub classes: usize,
    /// Share of numbers dropped in training, after the embedding, attention and in the perceptrons.
    #[config(default = 0.0)]
    pub dropout: f64,
}

/// A vision transformer (Dosovitskiy et al. 2021) with the shapes of torchvision; [`torchvision_name`] tells the names.
///
/// [`torchvision_name`]: crate::torchvision_name
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// `[1, 1, d]`
    pub class_token: Param<Tensor<3>>,
    /// One `d` for each patch.
    pub conv_proj: SparseConv2d,
    /// All that happens to tokens.
    pub encoder: Encoder,
    /// The classifier, on the class token.
    pub heads: Heads,
}

/// Position embedding, layers and a last normalisation.
#[derive(Module, Debug)]
pub struct Encoder {
    /// `[1, tokens, d]`
    pub pos_embedding: Param<Tensor<3>>,
    /// After the embedding.
    pub dropout: Dropout,
    /// One after the other.
    pub layers: Vec<EncoderLayer>,
    /// After the last.
    pub ln: LayerNorm,
}

/// Attention and a perceptron, each after a normalisation and beside a shortcut.
#[derive(Module, Debug)]
pub struct EncoderLayer {
    /// Before attention.
    pub ln_1: LayerNorm,
    /// Between all tokens.
    pub self_attention: SelfAttention,
    /// After attention.
    pub dropout: Dropout,
    /// Before the perceptron.
    pub ln_2: LayerNorm,
    /// `d → mlp → d`; linear layers are at the places that torchvision gives them.
    pub mlp: (SparseLinear, Gelu, Dropout, SparseLinear, Dropout),
}

/// Attention whose queries, keys and values come from one layer `[3·d, d]`, as sparse training wants it.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Queries, keys and values, in that order.
    pub in_proj: SparseLinear,
    /// `[d, d]`
    pub out_proj: SparseLinear,
    heads: usize,
}

/// The classifier.
#[derive(Module, Debug)]
pub struct Heads {
    /// `[classes, d]`
    pub head: SparseLinear,
}

impl VitConfig {
    /// Initialises the model on a device as torchvision does: Xavier's distribution for the perceptrons and attention's
    /// joint layer, U(±1/√d) for what comes out of attention, zeros for the classifier, the class token and the biases of
    /// attention and patches, narrow normal distributions for the perceptrons' biases and the positions.
    ///
    /// # Panics
    /// If `patch` does not divide the image, or `heads` the features.
    pub fn init(&self, device: &Device) -> VisionTransformer {
        let Self { patch, features, image: [height, width], .. } = *self;
        assert!(height % patch == 0 && width % patch == 0, "patches of {patch} do not fill {:?}", self.image);
        assert!(features % self.heads == 0, "{} heads do not divide {features} features", self.heads);
        let tokens = (height / patch) * (width / patch) + 1;
        let normal = |std| Initializer::Normal { mean: 0.0, std };
        // The variance of LeCun's initialisation.
        let patches = normal((1.0 / (self.channels * patch * patch) as f64).sqrt());
        let conv_proj = Conv2dConfig::new([self.channels, features], [patch, patch])
            .with_stride([patch, patch])
            .with_initializer(patches);
        let conv_proj =
            Conv2d { bias: Some(Initializer::Zeros.init([features], device)), ..conv_proj.init(device) }
                .into();
        VisionTransformer {
            class_token: Initializer::Zeros.init([1, 1, features], device),
            conv_proj,
            encoder: Encoder {
                pos_embedding: normal(0.02).init([1, tokens, features], device),
                dropout: DropoutConfig::new(self.dropout).init(),
                layers: (0..self.layers).map(|_| self.layer(device)).collect(),
                ln: norm(features, device),
            },
            heads: Heads {
                head: LinearConfig::new(features, self.classes)
                    .with_initializer(Initializer::Zeros)
                    .init(device)
                    .into(),
            },
        }
    }

    fn layer(&self, device: &Device) -> EncoderLayer {
        let (features, mlp) = (self.features, self.mlp);
        let linear = |from, to, weights: Initializer, biases: Initializer| {
            let linear = LinearConfig::new(from, to).with_initializer(weights).init(device);
            SparseLinear::from(Linear { bias: Some(biases.init([to], device)), ..linear })
        };
        let xavier = || Initializer::XavierUniform { gain: 1.0 };
        let narrow = || Initializer::Normal { mean: 0.0, std: 1e-6 };
        let bound = 1.0 / (features as f64).sqrt();
        let out = Initializer::Uniform { min: -bound, max: bound };
        let dropout = || DropoutConfig::new(self.dropout).init();
        EncoderLayer {
            ln_1: norm(features, device),
            self_attention: SelfAttention {
                in_proj: linear(features, 3 * features, xavier(), Initializer::Zeros),
                out_proj: linear(features, features, out, Initializer::Zeros),
                heads: self.heads,
            },
            dropout: dropout(),
            ln_2: norm(features, device),
            mlp: (
                linear(features, mlp, xavier(), narrow()),
                Gelu::new(),
                dropout(),
                linear(mlp, features, xavier(), narrow()),
                dropout(),
            ),
        }
    }
}

/// ε of all layer normalisations.
const EPSILON: f64 = 1e-6;

fn norm(features: usize, device: &Device) -> LayerNorm {
    LayerNormConfig::new(features).with_epsilon(EPSILON).init(device)
}

impl SelfAttention {
    /// `[batch, tokens, d]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.out_proj.forward(fused::attention(self.in_proj.forward(x), self.heads))
    }
}

impl EncoderLayer {
    /// `[batch, tokens, d]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let y = fused::layer_norm(&self.ln_1, EPSILON, x.clone());
        let attended = fused::dropout(&self.dropout, self.self_attention.forward(y)) + x;
        let (inner, _, inner_dropout, outer, dropout) = &self.mlp;
        let y = fused::layer_norm(&self.ln_2, EPSILON, attended.clone());
        let y = fused::dropout(inner_dropout, fused::gelu(inner.forward(y)));
        fused::dropout(dropout, outer.forward(y)) + attended
    }
}

impl Classifier for VisionTransformer {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        // [batch, d, rows, columns] → [batch, patches, d]
        let patches: Tensor<3> = self.conv_proj.forward(images).flatten(2, 3);
        let patches = patches.swap_dims(1, 2);
        let [batch, _, features] = patches.dims();
        let class = self.class_token.val().expand([batch, 1, features]);
        let tokens = Tensor::cat(vec![class, patches], 1) + self.encoder.pos_embedding.val();
        let mut x = fused::dropout(&self.encoder.dropout, tokens);
        for layer in &self.encoder.layers {
            x = layer.forward(x);
        }
        let class = fused::layer_norm(&self.encoder.ln, EPSILON, x.slice_dim(1, 0..1));
        let class = class.reshape([batch, features]);
        self.heads.head.forward(class)
    }
}

impl Lower for EncoderLayer {
    fn lower(&self, graph: &mut Lowering, input: Value) -> Value {
        let SelfAttention { in_proj, out_proj, heads } = &self.self_attention;
        let name = graph.name_around(self.ln_1.gamma.id, 1);
        let x = graph.layer_norm(&self.ln_1, EPSILON as f32, input);
        let x = graph.linear(in_proj, x);
        let x = graph.attention(format!("{name}.self_attention"), *heads, x);
        let x = graph.linear(out_proj, x);
        let attended = graph.add(format!("{name}.self_attention.add"), x, input);

        let (inner, _, _, outer, _) = &self.mlp;
        let x = graph.layer_norm(&self.ln_2, EPSILON as f32, attended);
        let x = graph.linear(inner, x);
        let x = graph.gelu(x);
        let x = graph.linear(outer, x);
        graph.add(format!("{name}.mlp.add"), x, attended)
    }
}

impl Lower for VisionTransformer {
    fn lower(&self, graph: &mut Lowering, images: Value) -> Value {
        let x = graph.conv2d(&self.conv_proj, images);
        let mut x = graph.tokens(&self.class_token, &self.encoder.pos_embedding, x);
        for layer in &self.encoder.layers {
            x = layer.lower(graph, x);
        }
        let x = graph.layer_norm(&self.encoder.ln, EPSILON as f32, x);
        let x = graph.class_token(x);
        graph.linear(&self.heads.head, x)
    }
}

/// Its row in the table.
pub(crate) static TINY: ModelInfo = ModelInfo {
    name: "vit-tiny",
    about: "Two layers of 64 features, patches of 8×8 unless another size is chosen",
    images: [3, 32, 32],
    classes: 10,
    stem: "conv_proj.weight",
    head: "heads.head.bias",
    width: Some(Size { usual: 64, tensor: "class_token", dimension: 2 }),
    patch: Some(Size { usual: 8, tensor: "conv_proj.weight", dimension: 2 }),
    dropout: true,
    check: |spec| check(&tiny(spec)),
};

/// Its row in the table.
pub(crate) static B16: ModelInfo = ModelInfo {
    name: "vit-b-16",
    about: "ViT-B/16",
    images: [3, 224, 224],
    classes: 1000,
    stem: "conv_proj.weight",
    head: "heads.head.bias",
    width: Some(Size { usual: 768, tensor: "class_token", dimension: 2 }),
    patch: Some(Size { usual: 16, tensor: "conv_proj.weight", dimension: 2 }),
    dropout: true,
    check: |spec| check(&b16(spec)),
};

fn tiny(spec: &ModelSpec) -> VitConfig {
    sized(VitConfig::new().with_patch(8).with_layers(2).with_heads(4).with_features(64).with_mlp(128), spec)
}

fn b16(spec: &ModelSpec) -> VitConfig {
    sized(VitConfig::new(), spec)
}

fn sized(config: VitConfig, spec: &ModelSpec) -> VitConfig {
    let [channels, height, width] = spec.images;
    let features = spec.width_or_usual();
    let mlp = config.mlp / config.features * features;
    let patch = spec.patch.unwrap_or(config.patch);
    let config = config.with_channels(channels).with_image([height, width]).with_classes(spec.classes);
    let config = config.with_patch(patch).with_features(features).with_mlp(mlp);
    spec.dropout.map_or(config.clone(), |share| config.with_dropout(share))
}

fn check(config: &VitConfig) -> Result<(), String> {
    let VitConfig { patch, image: [height, width], features, heads, .. } = *config;
    if !features.is_multiple_of(heads) {
        return Err(format!("has {heads} heads, which do not divide --width {features}"));
    }
    if !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
        return Err(format!(
            "cuts images into patches of {patch}×{patch}, which do not fill {height}×{width}; choose another --patch"
        ));
    }
    Ok(())
}

pub(crate) fn init_tiny(spec: &ModelSpec, device: &Device) -> VisionTransformer {
    tiny(spec).init(device)
}

pub(crate) fn init_b16(spec: &ModelSpec, device: &Device) -> VisionTransformer {
    b16(spec).init(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_count_is_torchvisions() {
        let config = VitConfig::new();
        assert_eq!(config.init(&Device::flex()).num_params(), 86_567_656);
    }

    /// As `torchvision.models.VisionTransformer` starts.
    #[test]
    fn initial_weights_are_torchvisions() {
        let device = Device::flex();
        device.seed(1);
        let config = VitConfig::new().with_image([32, 32]).with_patch(8).with_layers(1).with_heads(4);
        let net = config.with_features(64).with_mlp(128).with_classes(10).init(&device);
        let layer = &net.encoder.layers[0];
        let values = |weight: Tensor<2>| weight.into_data().try_into_vec::<f32>().unwrap();
        let most = |values: &[f32]| values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let within = |weight: Tensor<2>, bound: f64| {
            let (most, bound) = (most(&values(weight)), bound as f32);
            assert!(most <= bound && most > 0.99 * bound, "{most}, not {bound}");
        };
        within(layer.self_attention.out_proj.weight(), 1.0 / 8.0);
        within(layer.self_attention.in_proj.weight(), (6.0 / (64.0 + 192.0_f64)).sqrt());
        within(layer.mlp.0.weight(), (6.0 / (64.0 + 128.0_f64)).sqrt());
        let bias = |linear: &SparseLinear| values(linear.bias.as_ref().unwrap().val().unsqueeze());
        for linear in [&layer.self_attention.in_proj, &layer.self_attention.out_proj, &net.heads.head] {
            assert!(bias(linear).iter().all(|value| *value == 0.0));
        }
        for linear in [&layer.mlp.0, &layer.mlp.3] {
            assert!((1e-7..1e-5).contains(&most(&bias(linear))));
        }
        let patches = net.conv_proj.bias.as_ref().unwrap().val();
        assert!(values(patches.unsqueeze()).iter().all(|value| *value == 0.0));
    }

    #[test]
    fn images_need_not_be_square() {
        let config = VitConfig::new().with_image([16, 24]).with_patch(8).with_layers(1).with_heads(2);
        let config = config.with_features(8).with_mlp(16).with_classes(5).with_dropout(0.1);
        let net = config.init(&Device::flex());
        assert_eq!(net.encoder.pos_embedding.dims(), [1, 7, 8]);
        assert_eq!(net.forward(Tensor::ones([3, 3, 16, 24], &Device::flex())).dims(), [3, 5]);
    }
}
