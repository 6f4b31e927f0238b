//! SET (Mocanu et al. 2018) with constant fan-in: drop the smallest weights of a layer, and each neuron grows at random.

use super::{AnyMethod, Kept, Method, MethodInfo, Nm, Set, Updates, Variant};
use crate::random::Purpose;
use crate::select::{Key, keep_largest};
use crate::topology::{ActiveLayer, DenseGradient};
use crate::{Error, Mask, Stream, mask};
use rayon::prelude::*;

/// Drop by magnitude over the layer, grow at random within each neuron's row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StructuredSet;

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "Drop by magnitude, grow at random, with constant fan-in",
    updates: Updates::Scheduled,
    constant_fan_in: true,
    nm: Nm::Allowed,
    variants: &[Variant { name: "structured-set", label: "structured SET", settings: &[], flag: None }],
    build: Some(|_| AnyMethod::from(StructuredSet)),
    ..MethodInfo::new("structured-set")
};

impl Method for StructuredSet {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    /// As SET.
    fn keep(&self, layer: &ActiveLayer, alpha: f64) -> Option<Kept> {
        Set.keep(layer, alpha)
    }

    /// Each neuron that has weights keeps at most `k = ⌊A / active neurons⌋` of what stays, the largest, and draws others until it
    /// has `k`.
    fn update_active(
        &self,
        layer: &ActiveLayer,
        _gradient: DenseGradient,
        alpha: f64,
        stream: Stream,
    ) -> Option<Result<Mask, Error>> {
        let Kept { mut mask, .. } = self.keep(layer, alpha)?;
        let fan_in = match layer.shared_fan_in(|row| layer.mask.fan_in(row) > 0) {
            Ok(fan_in) => fan_in.min(mask.dense_fan_in()),
            Err(error) => return Some(Err(error)),
        };
        let (rows, inputs) = (layer.rows(), mask.dense_fan_in());
        let (words, width) = mask.rows_mut();
        words.par_chunks_mut(width).enumerate().for_each(|(neuron, row)| {
            if layer.mask.fan_in(neuron) == 0 {
                return;
            }
            let kept = mask::count(row);
            if kept > fan_in {
                let input = |key: &Key| key.position() - neuron * inputs;
                let mut keys: Vec<Key> =
                    layer.keys(&rows, neuron).filter(|key| mask::has_bit(row, input(key))).collect();
                keep_largest(&mut keys, fan_in);
                row.fill(0);
                keys.iter().for_each(|key| mask::set_bit(row, input(key)));
            } else if kept < fan_in {
                let mut rng = stream.rng(Purpose::Growth, neuron);
                let mut ranks = rand::seq::index::sample(&mut rng, inputs - kept, fan_in - kept).into_vec();
                ranks.sort_unstable();
                mask::activate_free(row, inputs, 0, &mut ranks.into_iter().peekable());
            }
        });
        Some(Ok(mask))
    }
}
