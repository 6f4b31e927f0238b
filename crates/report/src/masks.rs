//! Pictures of masks. Each layer is one PNG with its snapshots one below the other, of which the page shows the
//! one that the slider points at.

use crate::chart::{Colour, Style, thinned};
use crate::html;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{Markup, html};
use srigl_run::{Layer, MaskLine, Picture, Run};

/// Snapshots that a slider steps through.
const FRAMES: usize = 24;
/// Bytes of all pictures of a page: above, they get coarser.
const BUDGET: usize = 3_000_000;
/// Sides of pictures, finest first.
const SIDES: [usize; 4] = [64, 32, 16, 8];
/// Pixels that the longer side of a picture takes on the page.
const SHOWN: usize = 128;
/// Shades above none.
const SHADES: f32 = 15.0;

/// A layer's snapshots in one picture.
struct Strip<'a> {
    layer: &'a Layer,
    /// Cells of a frame.
    height: usize,
    width: usize,
    /// Largest share of active weights of any cell, 0 to 1.
    densest: f32,
    /// Base64.
    png: String,
}

/// The mask pictures of each run; nothing for runs without.
pub fn sections(runs: &[Run]) -> Vec<Markup> {
    let steps: Vec<Vec<u64>> = runs.iter().map(steps).collect();
    for side in SIDES {
        let of_run = |(i, run): (usize, _)| strips(run, &steps[i], Style::of_run(i).colour, side);
        let strips: Vec<Vec<Strip>> = runs.iter().enumerate().map(of_run).collect();
        let bytes: usize = strips.iter().flatten().map(|strip| strip.png.len()).sum();
        if bytes <= BUDGET || side == SIDES[SIDES.len() - 1] {
            return strips.iter().zip(&steps).map(|(strips, steps)| section(strips, steps)).collect();
        }
    }
    unreachable!("the last side is always drawn")
}

/// Steps at which any layer of the run has a snapshot.
fn steps(run: &Run) -> Vec<u64> {
    let mut steps: Vec<u64> =
        run.layers.iter().flat_map(|layer| layer.snapshots.iter().map(|snapshot| snapshot.step)).collect();
    steps.sort_unstable();
    steps.dedup();
    thinned(&steps, FRAMES).copied().collect()
}

fn strips<'a>(run: &'a Run, steps: &[u64], colour: Colour, side: usize) -> Vec<Strip<'a>> {
    run.layers.iter().filter_map(|layer| Strip::new(layer, steps, colour, side)).collect()
}

fn section(strips: &[Strip], steps: &[u64]) -> Markup {
    if strips.is_empty() {
        return html! {};
    }
    let last = steps.len() - 1;
    let list = steps.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    let shown = format!("step {}", steps[last]);
    html! {
        h3 { "Masks" }
        p.note {
            "Rows are neurons, columns inputs; the stronger a cell's colour, the more of its weights are active. The \
             scale is each layer's own."
        }
        div.masks style={ "--frame:" (last) } {
            label {
                "Snapshot "
                input type="range" min="0" max=(last) value=(last) data-steps=(list) aria-valuetext=(shown);
                output { (shown) }
            }
            div.pictures { @for strip in strips { (strip.figure(steps.len())) } }
        }
    }
}

impl<'a> Strip<'a> {
    fn new(layer: &'a Layer, steps: &[u64], [r, g, b]: Colour, side: usize) -> Option<Self> {
        let first = &layer.snapshots.first()?.picture;
        let (height, width) = (first.height.min(side), first.width.min(side));
        let at = |step: &u64| layer.snapshots.iter().find(|snapshot: &&MaskLine| snapshot.step == *step);
        let frame =
            |step| at(step).map_or_else(|| vec![0.0; height * width], |s| pooled(&s.picture, height, width));
        let cells: Vec<f32> = steps.iter().flat_map(frame).collect();
        let densest = cells.iter().copied().fold(0.0, f32::max);
        // A cell with any active weight must be seen.
        let shade = |cell: &f32| if *cell > 0.0 { (SHADES * cell / densest).ceil() as u8 } else { 0 };

        let mut pixels = Vec::new();
        for row in cells.chunks(width) {
            let shades: Vec<u8> = row.iter().map(shade).collect();
            pixels.extend(shades.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or(0)));
        }
        let mut png = Vec::new();
        let mut encoder = png::Encoder::new(&mut png, width as u32, (height * steps.len()) as u32);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Four);
        encoder.set_palette([r, g, b].repeat(16));
        encoder.set_trns((0..16).map(|shade| shade * 17).collect::<Vec<u8>>());
        encoder.set_compression(png::Compression::High);
        encoder.set_filter(png::Filter::NoFilter);
        let write = |encoder: png::Encoder<_>| encoder.write_header()?.write_image_data(&pixels);
        write(encoder).expect("writing to memory does not fail");
        Some(Self { layer, height, width, densest: densest / 255.0, png: STANDARD.encode(png) })
    }

    fn figure(&self, frames: usize) -> Markup {
        let pixels = SHOWN / self.height.max(self.width);
        let (height, width) = (self.height * pixels, self.width * pixels);
        let last = self.layer.snapshots.last();
        let shape = last.map(|last| format!("{} × {}", last.neurons, last.dense_fan_in)).unwrap_or_default();
        let name = html::name(&self.layer.name);
        let densest = html::percent(f64::from((100.0 * self.densest).ceil()) / 100.0);
        html! {
            figure {
                figcaption { (name) }
                div.frame style={ "width:" (width) "px;height:" (height) "px;--height:" (height) "px" } {
                    img alt={ "mask of " (name) ", " (shape) } width=(width) height=(height * frames)
                        src={ "data:image/png;base64," (self.png) };
                }
                p { (shape) ", densest cell " (densest) }
            }
        }
    }
}

/// Means of the cells that each coarser cell covers.
fn pooled(picture: &Picture, height: usize, width: usize) -> Vec<f32> {
    let mut cells = Vec::with_capacity(height * width);
    for row in 0..height {
        let rows = row * picture.height / height..(row + 1) * picture.height / height;
        for column in 0..width {
            let columns = column * picture.width / width..(column + 1) * picture.width / width;
            let all = rows.clone().flat_map(|r| &picture.density[r * picture.width..][columns.clone()]);
            let count = rows.len() * columns.len();
            cells.push(all.map(|density| f32::from(*density)).sum::<f32>() / count as f32);
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(height: usize, width: usize, density: &[u8]) -> Layer {
        let picture = Picture { height, width, density: density.to_vec() };
        let snapshot = MaskLine {
            step: 7,
            layer: "fc".into(),
            neurons: 1,
            dense_fan_in: 2,
            picture,
            fan_in: vec![(1, 1)],
        };
        Layer { name: "<l>".into(), updates: vec![], snapshots: vec![snapshot] }
    }

    #[test]
    fn pooling_is_a_mean() {
        let picture = Picture { height: 2, width: 3, density: vec![0, 100, 200, 100, 200, 30] };
        assert_eq!(pooled(&picture, 1, 2), [50.0, 132.5]);
        assert_eq!(pooled(&picture, 2, 3), [0.0, 100.0, 200.0, 100.0, 200.0, 30.0]);
    }

    #[test]
    fn shades_of_a_strip() {
        let layer = layer(1, 3, &[0, 1, 255]);
        // Step 8 has no snapshot.
        let strip = Strip::new(&layer, &[7, 8], [1, 2, 3], 64).unwrap();
        let png = STANDARD.decode(&strip.png).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, [0x01, 0xf0, 0, 0]);
        assert_eq!(reader.info().palette.as_deref().unwrap()[..3], [1, 2, 3]);
        assert!(strip.figure(2).into_string().contains("mask of &lt;l&gt;, 1 × 2"));
    }

    #[test]
    fn an_empty_mask_is_a_picture_too() {
        let strip = layer(2, 2, &[0; 4]);
        let strip = Strip::new(&strip, &[7], [0; 3], 64).unwrap();
        assert!(strip.figure(1).into_string().contains("densest cell 0\u{a0}%"));
    }
}
