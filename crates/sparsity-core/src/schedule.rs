//! When a topology is updated and how much of it.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The update schedule of RigL and SRigL. Steps are optimizer steps and count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateSchedule {
    /// `ΔT`: steps between updates.
    pub delta_t: u64,
    /// `α`: the drop fraction at the start.
    pub drop_fraction: f64,
    /// `T_end`: no update from this step on; 75 % of training in the paper.
    pub end_step: u64,
    /// The dense gradient of an update is the mean over this many last steps.
    pub grad_accumulation: u64,
}

impl UpdateSchedule {
    /// The paper's schedule, `ΔT` = 100 and `α` = 0.3, for a training whose updates end at `end_step`.
    pub fn new(end_step: u64) -> Self {
        Self { delta_t: 100, drop_fraction: 0.3, end_step, grad_accumulation: 1 }
    }

    /// Checks the ranges of all fields.
    ///
    /// # Errors
    /// [`Error::Setting`] names the field.
    pub fn validate(&self) -> Result<(), Error> {
        let setting = |name, value, allowed| Err(Error::Setting { name, value, allowed });
        if self.delta_t == 0 {
            return setting("delta_t", 0.0, "at least 1");
        }
        if !(0.0..=1.0).contains(&self.drop_fraction) {
            return setting("drop_fraction", self.drop_fraction, "in [0, 1]");
        }
        if self.grad_accumulation == 0 || self.grad_accumulation > self.delta_t {
            let value = self.grad_accumulation as f64;
            return setting("grad_accumulation", value, "at least 1 and at most delta_t");
        }
        Ok(())
    }

    /// Whether the topology is updated after step `t`: `t mod ΔT = 0` and `t < T_end`.
    pub fn is_update(&self, t: u64) -> bool {
        t > 0 && t.is_multiple_of(self.delta_t) && t < self.end_step
    }

    /// Whether the dense gradient of step `t` enters the mean of the next update.
    pub fn gathers_gradient(&self, t: u64) -> bool {
        let update = t.next_multiple_of(self.delta_t);
        self.is_update(update) && update - t < self.grad_accumulation
    }

    /// `α_t = α/2 · (1 + cos(π t / T_end))`.
    pub fn drop_fraction_at(&self, t: u64) -> f64 {
        self.drop_fraction / 2.0 * (1.0 + (PI * t as f64 / self.end_step as f64).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_every_delta_t_before_the_end() {
        let schedule = UpdateSchedule::new(300);
        let updates: Vec<u64> = (0..=500).filter(|&t| schedule.is_update(t)).collect();
        assert_eq!(updates, [100, 200]);
        assert!((schedule.drop_fraction_at(0) - 0.3).abs() < 1e-15);
        assert!((schedule.drop_fraction_at(150) - 0.15).abs() < 1e-15);
        assert!(schedule.drop_fraction_at(300).abs() < 1e-15);
    }

    #[test]
    fn gradients_are_gathered_just_before_an_update() {
        let schedule = UpdateSchedule { grad_accumulation: 3, ..UpdateSchedule::new(201) };
        let steps: Vec<u64> = (1..=400).filter(|&t| schedule.gathers_gradient(t)).collect();
        assert_eq!(steps, [98, 99, 100, 198, 199, 200]);
    }

    #[test]
    fn ranges_are_checked() {
        let good = UpdateSchedule::new(10);
        assert!(good.validate().is_ok());
        assert!(UpdateSchedule { delta_t: 0, ..good }.validate().is_err());
        assert!(UpdateSchedule { drop_fraction: 1.5, ..good }.validate().is_err());
        assert!(UpdateSchedule { grad_accumulation: 100, ..good }.validate().is_ok(), "each of ΔT steps");
        assert!(UpdateSchedule { grad_accumulation: 101, ..good }.validate().is_err());
    }
}
