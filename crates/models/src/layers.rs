//! The layers of a network, as far as its cost depends on them.

use crate::{Classifier, Error, ModelSpec, WithModel, torchvision_name};
use burn::tensor::Device;
use condensed::{Node, Op, Shape};
use sparsity_core::counting::{CountedLayer, LayerKind};
use srigl_burn::lower;

impl ModelSpec {
    /// Its convolutions and linear layers in the order in which they run, by torchvision's names, for
    /// [`sparsity_core::counting`]. The products of attention have no weights and are not among them.
    ///
    /// ```
    /// let layers = srigl_models::ModelInfo::named("mlp")?.usual().layers()?;
    /// assert_eq!((&*layers[0].name, &*layers[0].dims, layers[0].out_positions), ("fc1", &[300, 784][..], 1));
    /// # Ok::<(), srigl_models::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn layers(&self) -> Result<Vec<CountedLayer>, Error> {
        self.with(&Device::flex(), Layers(*self))?
    }
}

struct Layers(ModelSpec);

impl WithModel for Layers {
    type Output = Result<Vec<CountedLayer>, Error>;

    fn run<M: Classifier>(self, model: M) -> Self::Output {
        let [features, height, width] = self.0.images;
        let network = lower(&model, Shape { features, height, width }, [], torchvision_name);
        let network =
            network.map_err(|error| Error::Misfit { model: self.0.info.name, what: error.to_string() })?;
        let shapes = network.shapes();
        let layer = |(node, output): (&Node, &Shape)| {
            let (kind, dims) = match &node.op {
                Op::Conv2d(conv) => {
                    let [height, width] = conv.window.kernel;
                    let inputs = shapes[node.inputs[0]].features / conv.groups;
                    (LayerKind::Conv, vec![conv.bias.len(), inputs, height, width])
                }
                Op::Linear(linear) => {
                    (LayerKind::Linear, vec![linear.bias.len(), shapes[node.inputs[0]].features])
                }
                _ => return None,
            };
            Some(CountedLayer { name: node.name.clone(), kind, dims, out_positions: output.positions() })
        };
        Ok(network.nodes().iter().zip(shapes).filter_map(layer).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MODELS, ModelInfo};

    #[test]
    fn resnet50_has_the_weights_of_torchvision() {
        let layers = ModelInfo::named("resnet50").unwrap().usual().layers().unwrap();
        assert_eq!(layers.len(), 54);
        let weights: usize = layers.iter().map(|layer| layer.dims.iter().product::<usize>()).sum();
        // torchvision's 25 557 032 parameters less 53 120 of batch norm and 1000 biases.
        assert_eq!(weights, 25_502_912);
        let place = |name: &str| layers.iter().find(|layer| layer.name == name).unwrap();
        assert_eq!(place("conv1").out_positions, 112 * 112);
        assert_eq!(place("layer3.0.conv1").out_positions, 28 * 28);
        assert_eq!(place("layer3.0.conv2").out_positions, 14 * 14);
        assert_eq!(place("layer3.0.downsample.0").dims, [1024, 512, 1, 1]);
    }

    #[test]
    fn layers_of_all_networks_end_in_their_classes() {
        for info in MODELS {
            let layers = info.usual().layers().unwrap();
            assert_eq!(layers.last().unwrap().dims[0], info.classes, "{}", info.name);
            assert!(layers.iter().all(|layer| layer.out_positions > 0 && !layer.dims.contains(&0)));
        }
        // Depthwise convolutions read one channel; a layer of a transformer runs for each token.
        let layers = |name| ModelInfo::named(name).unwrap().usual().layers().unwrap();
        assert!(layers("mobilenet-v3-small").iter().any(|layer| layer.dims[1..] == [1, 3, 3]));
        let tokens = layers("vit-b-16");
        assert!(tokens.iter().any(|layer| layer.kind == LayerKind::Linear && layer.out_positions == 197));
    }
}
