//! `freeze`: the one step from a float model whose sites are complete to a model of integers.
//!
//! Freezing invents nothing. A weight must already lie exactly on its grid, which is what a quantizer's `finish`
//! promises; freezing writes down the codes and proves, bit for bit, that decoding them gives the weight back.

use std::collections::BTreeMap;

use bitsmith_kernels::numerics;

use crate::error::{Error, Kind};
use crate::graph::{Graph, ValueId};
use crate::model::{ClassNames, Layer, Model, Preprocess, layers};
use crate::op::Op;
use crate::ops::BatchNormalization;
use crate::quant::{QParams, QuantSpec, Role, Site, channels, for_each_channel};
use crate::tensor::{Data, Tensor};

/// A model of integers. Only [`freeze`] and [`QuantModel::from_parts`] (for readers of files) make one, and both check it.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantModel {
    name: String,
    graph: Graph,
    sites: BTreeMap<ValueId, (Role, QParams)>,
    preprocess: Option<Preprocess>,
    classes: ClassNames,
}

/// A quantized constant: codes and what they mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantTensor<'a> {
    /// Dimensions.
    pub shape: &'a [usize],
    /// One code per element, row-major: `I8`, or `U8` where codes exceed 127.
    pub codes: &'a Data,
    /// The grid.
    pub params: &'a QParams,
}

impl QuantTensor<'_> {
    /// Code of element `index`.
    pub fn code(&self, index: usize) -> i32 {
        match self.codes {
            Data::I8(v) => v[index].into(),
            Data::U8(v) => v[index].into(),
            // `from_parts` admits no other type.
            _ => 0,
        }
    }

    /// The values that the codes stand for.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.codes.len()];
        for_each_channel(self.params.spec.per, self.shape, |i, channel| {
            out[i] = self.params.decode(self.code(i), channel)
        });
        out
    }

    /// Bits that a file needs for the codes alone.
    pub fn payload_bits(&self) -> u64 {
        let runs = self.params.runs(self.codes.len());
        let several = runs.len() > 1;
        let bits = |(spec, n): (QuantSpec, usize)| match (n as u64, spec.is_ternary()) {
            (n, true) => n.div_ceil(5) * 8,
            (n, false) if several => (n * u64::from(spec.bits)).next_multiple_of(8),
            (n, false) => n * u64::from(spec.bits),
        };
        runs.into_iter().map(bits).sum()
    }
}

impl QuantModel {
    /// Puts a model together from a file's parts, checking everything that [`freeze`] guarantees.
    pub fn from_parts(
        name: String,
        graph: Graph,
        sites: BTreeMap<ValueId, (Role, QParams)>,
        preprocess: Option<Preprocess>,
        classes: ClassNames,
    ) -> Result<Self, Error> {
        let shapes = graph.shapes(1)?;
        for (&id, (role, params)) in &sites {
            let name = &graph.value(id).name;
            let count = match role {
                Role::Weight | Role::Bias => channels(params.spec.per, &shapes[id.index()])?,
                Role::Activation | Role::Input => 1,
            };
            params.check(count).map_err(|e| e.at(name))?;
            if *role != Role::Weight && !params.rows.is_empty() {
                return Err(Error::new(Kind::Quantization, "only weights have channels of several widths").at(name));
            }
            match (role, graph.constant(id).map(Tensor::data)) {
                (Role::Weight | Role::Bias, Some(codes @ (Data::I8(_) | Data::U8(_)))) => {
                    check_codes(params, codes).map_err(|e| e.at(name))?
                }
                (Role::Weight | Role::Bias, _) => {
                    return Err(Error::new(Kind::Quantization, "a quantized constant needs its codes").at(name));
                }
                (_, Some(_)) => {
                    return Err(Error::new(Kind::Quantization, "an activation cannot be a constant").at(name));
                }
                (_, None) => {}
            }
        }
        Ok(Self { name, graph, sites, preprocess, classes })
    }

    /// What the model is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network. Constants at weight and bias sites hold codes, not values.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Grids by value: quantized constants, activations, inputs.
    pub fn sites(&self) -> &BTreeMap<ValueId, (Role, QParams)> {
        &self.sites
    }

    /// The grid of a value, if it is rounded.
    pub fn params(&self, id: ValueId) -> Option<&QParams> {
        self.sites.get(&id).map(|(_, params)| params)
    }

    /// A quantized constant.
    pub fn tensor(&self, id: ValueId) -> Option<QuantTensor<'_>> {
        let (Role::Weight | Role::Bias, params) = self.sites.get(&id)? else { return None };
        let tensor = self.graph.constant(id)?;
        Some(QuantTensor { shape: tensor.shape(), codes: tensor.data(), params })
    }

    /// How images become input.
    pub fn preprocess(&self) -> Option<&Preprocess> {
        self.preprocess.as_ref()
    }

    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The layers that multiply by a constant weight.
    pub fn layers(&self) -> Result<Vec<Layer>, Error> {
        layers(&self.graph)
    }

    /// Mean stored bits per weight over all layers, weighted by size; layers without a site count 32.
    pub fn mean_weight_bits(&self) -> Result<f64, Error> {
        let (mut bits, mut weights) = (0.0, 0.0);
        for layer in self.layers()? {
            let width = self.params(layer.weight).map_or(32.0, |p| p.stored_bits());
            bits += width * layer.weights as f64;
            weights += layer.weights as f64;
        }
        Ok(if weights > 0.0 { bits / weights } else { 0.0 })
    }

    /// The same model in float, every value on its grid: what training simulated.
    pub fn to_model(&self) -> Result<Model, Error> {
        let mut model = Model {
            name: self.name.clone(),
            graph: self.graph.clone(),
            sites: BTreeMap::new(),
            preprocess: self.preprocess.clone(),
            classes: self.classes.clone(),
        };
        for (&id, (role, params)) in &self.sites {
            if let Some(tensor) = self.tensor(id) {
                model.graph.set_constant(id, Tensor::f32(tensor.shape, tensor.decode())?)?;
            }
            model.sites.insert(id, Site { role: *role, spec: params.spec, params: Some(params.clone()) });
        }
        Ok(model)
    }
}

fn check_codes(params: &QParams, codes: &Data) -> Result<(), Error> {
    if !params.rows.is_empty() && !matches!(codes, Data::I8(_)) {
        return Err(Error::new(Kind::Quantization, "channels of several widths have signed codes"));
    }
    let mut from = 0;
    for (spec, n) in params.runs(codes.len()) {
        let (low, high) = spec.code_range();
        let bad = |code: i32| match spec.grid {
            crate::quant::Grid::Planes { mask } => code.unsigned_abs() as u8 & !mask != 0 || code.unsigned_abs() > 127,
            _ => !(low..=high).contains(&code),
        };
        let found = match codes {
            Data::I8(v) => v[from..from + n].iter().map(|&c| c.into()).find(|&c| bad(c)),
            Data::U8(v) => v[from..from + n].iter().map(|&c| c.into()).find(|&c| bad(c)),
            _ => None,
        };
        if let Some(code) = found {
            let detail = format!("code {code} is not one of the grid's ({low}..={high})");
            return Err(Error::new(Kind::Quantization, detail));
        }
        from += n;
    }
    Ok(())
}

/// Turns a model whose sites are complete into integers, or names the first site that is not ready.
///
/// Batch normalisations become their frozen form: gamma and beta hold the factor and offset of
/// [`numerics::batch_norm_affine`], mean is 0, variance 1 and epsilon 0, which computes the same numbers.
pub fn freeze(model: Model) -> Result<QuantModel, Error> {
    let Model { name, graph, sites, preprocess, classes } = model;
    let mut graph = freeze_batch_norms(graph)?;
    let mut frozen = BTreeMap::new();
    for (id, site) in sites {
        let place = graph.value(id).name.clone();
        let Some(params) = site.params else {
            return Err(Error::new(
                Kind::Quantization,
                "this site has no quantization parameters yet: calibrate or train it first",
            )
            .at(place));
        };
        if let Some(tensor) = graph.constant(id) {
            let codes = encode_exactly(tensor, &params).map_err(|e| e.at(&place))?;
            graph.set_constant(id, codes)?;
        }
        frozen.insert(id, (site.role, params));
    }
    for value in graph.values() {
        if let Some(v) =
            value.constant.as_ref().and_then(Tensor::as_f32).and_then(|v| v.iter().find(|x| !x.is_finite()))
        {
            return Err(
                Error::new(Kind::Quantization, format!("holds {v}: every number must be finite")).at(&value.name)
            );
        }
    }
    QuantModel::from_parts(name, graph, frozen, preprocess, classes)
}

/// The codes of a tensor that already lies on the grid.
fn encode_exactly(tensor: &Tensor, params: &QParams) -> Result<Tensor, Error> {
    let values = tensor.as_f32().ok_or_else(|| {
        Error::new(Kind::Quantization, format!("a {} tensor cannot be quantized", tensor.data().dtype()))
    })?;
    params.check(channels(params.spec.per, tensor.shape())?)?;
    let mut codes = vec![0i32; values.len()];
    let mut off_grid = None;
    for_each_channel(params.spec.per, tensor.shape(), |i, channel| {
        codes[i] = params.encode(values[i], channel);
        let decoded = params.decode(codes[i], channel);
        // A negative zero is a zero: it is the only value that may change its bits.
        if decoded != values[i] && off_grid.is_none() {
            off_grid = Some((i, values[i], decoded));
        }
    });
    if let Some((i, value, decoded)) = off_grid {
        return Err(Error::new(
            Kind::Quantization,
            format!(
                "element {i} is {value} but the nearest number on its {}-bit grid is {decoded}: harden the weights before freezing",
                params.spec.bits
            ),
        ));
    }
    let data = match params.code_range().1 > 127 {
        true => Data::U8(codes.iter().map(|&c| u8::try_from(c).unwrap_or(u8::MAX)).collect()),
        false => Data::I8(codes.iter().map(|&c| i8::try_from(c).unwrap_or(i8::MAX)).collect()),
    };
    Tensor::new(tensor.shape().to_vec(), data)
}

/// Rewrites each batch normalisation's constants to (a, b, 0, 1) with epsilon 0.
fn freeze_batch_norms(graph: Graph) -> Result<Graph, Error> {
    let mut out = graph.clone();
    for (index, node) in graph.nodes().iter().enumerate() {
        let Op::BatchNormalization(op) = &node.op else { continue };
        let place = |e: Error| e.at(&node.name);
        let mut ids = [None; 4];
        for (slot, id) in ids.iter_mut().zip(&node.inputs[1..]) {
            *slot = *id;
        }
        let constant = |slot: usize| {
            ids[slot]
                .and_then(|id| Some((id, graph.constant(id)?.as_f32()?.to_vec())))
                .ok_or_else(|| place(Error::new(Kind::Structure, "its parameters must be float constants")))
        };
        let (gamma, beta, mean, var) = (constant(0)?, constant(1)?, constant(2)?, constant(3)?);
        let n = gamma.1.len();
        let (mut a, mut b) = (vec![0.0; n], vec![0.0; n]);
        for c in 0..n {
            (a[c], b[c]) = numerics::batch_norm_affine(gamma.1[c], beta.1[c], mean.1[c], var.1[c], op.epsilon);
        }
        for (id, data) in [(gamma.0, a), (beta.0, b), (mean.0, vec![0.0; n]), (var.0, vec![1.0; n])] {
            out.set_constant(id, Tensor::floats(data))?;
        }
        out.replace_op(index, BatchNormalization { epsilon: 0.0, momentum: op.momentum }.into());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Dim;
    use crate::ops::Gemm;
    use crate::quant::Granularity;

    fn linear(weights: Vec<f32>) -> (Model, ValueId) {
        let mut g = Graph::new();
        let x = g.add_input("x", vec![Dim::Batch, Dim::Fixed(2)]).unwrap();
        let w = g.add_constant("w", Tensor::f32([2, 2], weights).unwrap()).unwrap();
        let y = g.add("fc", Gemm::default(), &[x, w]).unwrap();
        g.set_outputs(vec![y]);
        (Model::new("linear", g), w)
    }

    fn site(params: Option<QParams>) -> Site {
        let spec = QParams::signed(3, true, Granularity::PerTensor, vec![0.1]).spec;
        Site { role: Role::Weight, spec, params }
    }

    #[test]
    fn what_is_frozen_decodes_to_what_was_trained() {
        let params = QParams::signed(3, true, Granularity::PerChannel { axis: 0 }, vec![0.1, 0.3]);
        let weights = vec![0.1 * -3.0, 0.1 * 2.0, 0.3 * 1.0, -0.0];
        let (mut model, w) = linear(weights.clone());
        model.sites.insert(w, site(Some(params)));
        let frozen = freeze(model).unwrap();
        let tensor = frozen.tensor(w).unwrap();
        assert_eq!(tensor.codes, &Data::I8(vec![-3, 2, 1, 0]));
        assert_eq!(tensor.decode(), weights);
        assert_eq!(tensor.payload_bits(), 12);
        assert_eq!(frozen.mean_weight_bits(), Ok(3.0));
    }

    #[test]
    fn what_is_not_ready_is_named() {
        let (mut model, w) = linear(vec![0.1, 0.2, 0.25, 0.0]);
        model.sites.insert(w, site(None));
        assert!(
            freeze(model.clone()).unwrap_err().to_string().starts_with("`w`: this site has no quantization parameters")
        );
        model.sites.insert(w, site(Some(QParams::signed(3, true, Granularity::PerTensor, vec![0.1]))));
        let error = freeze(model).unwrap_err().to_string();
        assert!(error.starts_with("`w`: element 2 is 0.25 but the nearest number on its 3-bit grid is 0.2"), "{error}");
        let (mut model, w) = linear(vec![f32::NAN, 0.0, 0.0, 0.0]);
        model.sites.insert(w, site(Some(QParams::signed(3, true, Granularity::PerTensor, vec![0.1]))));
        assert!(freeze(model).is_err());
    }
}
