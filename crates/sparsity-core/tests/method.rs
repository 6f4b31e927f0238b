//! A method written elsewhere, with a mistake in it.

use sparsity_core::methods::{AnyMethod, Method, MethodInfo, Settings, Updates};
use sparsity_core::{Error, Layer, LayerSpec, Mask, Stream, initial_mask, update_layer};

/// Its masks are transposed.
#[derive(Debug)]
struct Transposed;

static INFO: MethodInfo = MethodInfo { updates: Updates::Scheduled, ..MethodInfo::new("transposed") };

impl Method for Transposed {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn initial_mask(&self, layer: &LayerSpec, _: f64, _: Stream) -> Result<Mask, Error> {
        Ok(Mask::full(layer.dense_fan_in(), layer.neurons()))
    }

    fn update(&self, layer: &Layer, _: f64, _: Stream) -> Result<Mask, Error> {
        Ok(Mask::full(layer.mask.dense_fan_in(), layer.mask.neurons()))
    }
}

#[test]
fn a_mask_of_another_shape_is_refused() {
    let stream = Stream { seed: 0, layer: 0, step: 0 };
    let expected =
        Error::MethodMask { layer: "fc".into(), method: "transposed", expected: [2, 3], got: [3, 2] };
    let spec = LayerSpec::new("fc".to_string(), vec![2, 3]).unwrap();
    assert_eq!(initial_mask(&Transposed, &spec, 0.5, stream).unwrap_err(), expected);
    let (mask, values) = (Mask::full(2, 3), [1.0; 6]);
    let layer =
        Layer { name: "fc", weights: &values, grads: &values, mask: &mask, sparsity: 0.5, ablate: false };
    assert_eq!(update_layer(&Transposed, 0.3, &layer, stream).unwrap_err(), expected);
}

#[test]
fn a_method_that_is_in_no_table_is_not_known_by_name() {
    let method = AnyMethod::from(Transposed);
    assert_eq!(method.label(), "custom");
    let json = serde_json::to_string(&method).unwrap();
    assert_eq!(json, r#"{"name":"transposed"}"#);
    assert!(serde_json::from_str::<AnyMethod>(&json).is_err());
    assert!(matches!(INFO.build(&Settings::default()), Err(Error::UnknownMethod { .. })));
}
