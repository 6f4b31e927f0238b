//! When a topology is updated and how much of it.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the drop fraction falls from `α` (RigL, Evci et al. 2020, appendix on schedules).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropSchedule {
    /// `α/2 · (1 + cos(π t / T_end))`.
    #[default]
    Cosine,
    /// `α`.
    Constant,
    /// `α · (1 − t/T_end)`.
    Linear,
    /// `α · (1 − t/T_end)³`.
    InversePower,
}

impl DropSchedule {
    /// All by the names of command lines and files, each with what it does.
    pub const NAMES: [(&'static str, &'static str, Self); 4] = [
        ("cosine", "Half a cosine, to 0 at the end", Self::Cosine),
        ("constant", "The same at each update", Self::Constant),
        ("linear", "A straight line to 0 at the end", Self::Linear),
        ("inverse-power", "The third power of what is left of the way", Self::InversePower),
    ];
}

/// The update schedule of RigL and SRigL. Steps are optimizer steps and count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateSchedule {
    /// `ΔT`: steps between updates.
    pub delta_t: u64,
    /// `α`: the drop fraction at the start.
    pub drop_fraction: f64,
    /// How it falls until the end.
    #[serde(default)]
    pub drop_schedule: DropSchedule,
    /// `T_end`: no update from this step on; 75 % of training in the paper.
    pub end_step: u64,
    /// The dense gradient of an update is the mean over this many last steps.
    pub grad_accumulation: u64,
}

impl UpdateSchedule {
    /// The paper's schedule, `ΔT` = 100 and `α` = 0.3, for a training whose updates end at `end_step`.
    pub fn new(end_step: u64) -> Self {
        let drop_schedule = DropSchedule::Cosine;
        Self { delta_t: 100, drop_fraction: 0.3, drop_schedule, end_step, grad_accumulation: 1 }
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

    /// `α_t`, by default `α/2 · (1 + cos(π t / T_end))`; from the end on that of the end.
    pub fn drop_fraction_at(&self, t: u64) -> f64 {
        if self.end_step == 0 {
            return if self.drop_schedule == DropSchedule::Constant { self.drop_fraction } else { 0.0 };
        }
        let t = t.min(self.end_step);
        let left = 1.0 - t as f64 / self.end_step as f64;
        match self.drop_schedule {
            // In this order of operations, by which masks have been pinned.
            DropSchedule::Cosine => {
                self.drop_fraction / 2.0 * (1.0 + (PI * t as f64 / self.end_step as f64).cos())
            }
            DropSchedule::Constant => self.drop_fraction,
            DropSchedule::Linear => self.drop_fraction * left,
            DropSchedule::InversePower => self.drop_fraction * left.powi(3),
        }
    }

    /// The step of the last update; `None` if there is none.
    pub fn last_update(&self) -> Option<u64> {
        let last = self.end_step.saturating_sub(1) / self.delta_t * self.delta_t;
        (last > 0).then_some(last)
    }

    /// How much of the way to the last update lies behind step `t`, 0 to 1; 1 if there is no update.
    pub fn progress_at(&self, t: u64) -> f64 {
        self.last_update().map_or(1.0, |last| (t as f64 / last as f64).min(1.0))
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
    fn drop_fractions_fall_as_they_are_told_to() {
        let at = |drop_schedule, t| {
            UpdateSchedule { drop_schedule, ..UpdateSchedule::new(200) }.drop_fraction_at(t)
        };
        for (name, _, schedule) in DropSchedule::NAMES {
            let values = [0, 100, 200, 300].map(|t| (at(schedule, t) * 1e6).round() / 1e6);
            let expected = match schedule {
                DropSchedule::Cosine => [0.3, 0.15, 0.0, 0.0],
                DropSchedule::Constant => [0.3; 4],
                DropSchedule::Linear => [0.3, 0.15, 0.0, 0.0],
                DropSchedule::InversePower => [0.3, 0.0375, 0.0, 0.0],
            };
            assert_eq!(values, expected, "{name}");
            assert_eq!(serde_json::to_value(schedule).unwrap(), name);
            let at_once = UpdateSchedule { drop_schedule: schedule, ..UpdateSchedule::new(0) };
            let constant = schedule == DropSchedule::Constant;
            assert_eq!([0, 1].map(|t| at_once.drop_fraction_at(t)), [if constant { 0.3 } else { 0.0 }; 2]);
        }
    }

    #[test]
    fn progress_ends_at_the_last_update() {
        let progress =
            |end_step, steps: [u64; 3]| steps.map(|t| UpdateSchedule::new(end_step).progress_at(t));
        assert_eq!(progress(401, [0, 100, 400]), [0.0, 0.25, 1.0]);
        assert_eq!(progress(400, [150, 300, 399]), [0.5, 1.0, 1.0]);
        assert_eq!(UpdateSchedule::new(400).last_update(), Some(300));
        for end_step in [0, 1, 100] {
            assert_eq!(UpdateSchedule::new(end_step).last_update(), None);
        }
        assert_eq!(progress(100, [0, 1, 2]), [1.0; 3]);
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
