//! A method whose masks have an N:M pattern.

use super::{AnyMethod, Growth, Method, MethodInfo, NM, Settings, Value};
use crate::topology::{ActiveLayer, DenseGradient};
use crate::{Error, Mask, NmPattern, Stream};
use rayon::prelude::*;

/// Drops as the method does, and grows within the groups that have lost something.
#[derive(Debug)]
pub(super) struct Restricted {
    pub method: AnyMethod,
    pub nm: NmPattern,
}

impl Method for Restricted {
    fn info(&self) -> &'static MethodInfo {
        self.method.info()
    }

    fn settings(&self) -> Settings {
        let mut settings = self.method.settings();
        settings.0.insert(NM.into(), Value::Word(self.nm.to_string()));
        settings
    }

    fn check(&self) -> Result<(), Error> {
        self.method.check()
    }

    fn nm(&self) -> Option<NmPattern> {
        Some(self.nm)
    }

    fn update_active(
        &self,
        layer: &ActiveLayer,
        mut gradient: DenseGradient,
        alpha: f64,
        stream: Stream,
    ) -> Option<Result<Mask, Error>> {
        let kept = self.method.keep(layer, alpha)?;
        let (mut mask, inputs) = (kept.mask, layer.mask.dense_fan_in());
        let rows = layer.rows();
        let (words, width) = mask.rows_mut();
        words.par_chunks_mut(width).enumerate().for_each(|(neuron, row)| {
            self.nm.prune(layer.keys(&rows, neuron), neuron * inputs, inputs, row);
            if kept.growth == Growth::Random {
                self.nm.fill_at_random(stream, neuron, inputs, row);
            }
        });
        if kept.growth == Growth::Random {
            return Some(Ok(mask));
        }
        let all: Vec<usize> = (0..mask.neurons()).collect();
        let filled = layer.each_block(&mut gradient, &all, |neurons, block| {
            let (words, width) = mask.rows_mut();
            let words = words[neurons[0] * width..].par_chunks_mut(width);
            words.zip(block.par_chunks(inputs)).for_each(|(row, gradient)| {
                self.nm.fill_by_gradient(gradient, row);
            });
        });
        Some(filled.map(|()| mask))
    }
}
