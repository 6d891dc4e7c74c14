"""Which operators allocate on CUDA what the model says, and how far off the others are.

Written by benchmarks/temporaries.py; results/temporaries.md says how it was measured.
"""

_EXACT = """
aten._adaptive_avg_pool2d.default aten._adaptive_avg_pool2d_backward.default aten._adaptive_avg_pool3d.default
aten._adaptive_avg_pool3d_backward.default aten._amp_foreach_non_finite_check_and_unscale_.default
aten._amp_update_scale_.default aten._batch_norm_with_update.default aten._efficient_attention_forward.default
aten._embedding_bag.default aten._embedding_bag_per_sample_weights_backward.default aten._foreach_abs.default
aten._foreach_abs_.default aten._foreach_acos.default aten._foreach_acos_.default aten._foreach_add.List
aten._foreach_add.Scalar aten._foreach_add.ScalarList aten._foreach_add.Tensor aten._foreach_add_.List
aten._foreach_add_.Scalar aten._foreach_add_.ScalarList aten._foreach_add_.Tensor aten._foreach_addcdiv.Scalar
aten._foreach_addcdiv.ScalarList aten._foreach_addcdiv_.Scalar aten._foreach_addcdiv_.ScalarList
aten._foreach_addcmul.Scalar aten._foreach_addcmul.ScalarList aten._foreach_addcmul_.Scalar
aten._foreach_addcmul_.ScalarList aten._foreach_asin.default aten._foreach_asin_.default aten._foreach_atan.default
aten._foreach_atan_.default aten._foreach_ceil.default aten._foreach_ceil_.default aten._foreach_clamp_max.List
aten._foreach_clamp_max.Scalar aten._foreach_clamp_max.ScalarList aten._foreach_clamp_max_.List
aten._foreach_clamp_max_.Scalar aten._foreach_clamp_max_.ScalarList aten._foreach_clamp_min.List
aten._foreach_clamp_min.Scalar aten._foreach_clamp_min.ScalarList aten._foreach_clamp_min_.List
aten._foreach_clamp_min_.Scalar aten._foreach_clamp_min_.ScalarList aten._foreach_clone.default
aten._foreach_copy_.default aten._foreach_cos.default aten._foreach_cos_.default aten._foreach_cosh.default
aten._foreach_cosh_.default aten._foreach_div.List aten._foreach_div.Scalar aten._foreach_div.ScalarList
aten._foreach_div.Tensor aten._foreach_div_.List aten._foreach_div_.Scalar aten._foreach_div_.ScalarList
aten._foreach_div_.Tensor aten._foreach_erf.default aten._foreach_erf_.default aten._foreach_erfc.default
aten._foreach_erfc_.default aten._foreach_exp.default aten._foreach_exp_.default aten._foreach_expm1.default
aten._foreach_expm1_.default aten._foreach_floor.default aten._foreach_floor_.default aten._foreach_frac.default
aten._foreach_frac_.default aten._foreach_lerp_.Scalar aten._foreach_lgamma.default aten._foreach_lgamma_.default
aten._foreach_log.default aten._foreach_log10.default aten._foreach_log10_.default aten._foreach_log1p.default
aten._foreach_log1p_.default aten._foreach_log2.default aten._foreach_log2_.default aten._foreach_log_.default
aten._foreach_maximum.List aten._foreach_maximum.Scalar aten._foreach_maximum.ScalarList aten._foreach_maximum_.List
aten._foreach_maximum_.Scalar aten._foreach_maximum_.ScalarList aten._foreach_minimum.List
aten._foreach_minimum.Scalar aten._foreach_minimum.ScalarList aten._foreach_minimum_.List
aten._foreach_minimum_.Scalar aten._foreach_minimum_.ScalarList aten._foreach_mul.List aten._foreach_mul.Scalar
aten._foreach_mul.ScalarList aten._foreach_mul.Tensor aten._foreach_mul_.List aten._foreach_mul_.Scalar
aten._foreach_mul_.ScalarList aten._foreach_mul_.Tensor aten._foreach_neg.default aten._foreach_neg_.default
aten._foreach_norm.Scalar aten._foreach_pow.List aten._foreach_pow.Scalar aten._foreach_pow.ScalarList
aten._foreach_pow_.List aten._foreach_pow_.Scalar aten._foreach_pow_.ScalarList aten._foreach_reciprocal.default
aten._foreach_reciprocal_.default aten._foreach_round.default aten._foreach_round_.default
aten._foreach_rsqrt.default aten._foreach_rsqrt_.default aten._foreach_sigmoid.default
aten._foreach_sigmoid_.default aten._foreach_sign.default aten._foreach_sign_.default aten._foreach_sin.default
aten._foreach_sin_.default aten._foreach_sinh.default aten._foreach_sinh_.default aten._foreach_sqrt.default
aten._foreach_sqrt_.default aten._foreach_sub.List aten._foreach_sub.Scalar aten._foreach_sub.ScalarList
aten._foreach_sub_.List aten._foreach_sub_.Scalar aten._foreach_sub_.ScalarList aten._foreach_tan.default
aten._foreach_tan_.default aten._foreach_tanh.default aten._foreach_tanh_.default aten._foreach_trunc.default
aten._foreach_trunc_.default aten._foreach_zero_.default aten._fused_adamw_.default aten._fused_rms_norm.default
aten._fused_rms_norm_backward.default aten._is_all_true.default aten._is_any_true.default aten._linalg_svd.default
aten._local_scalar_dense.default aten._log_softmax.default aten._log_softmax_backward_data.default
aten._native_batch_norm_legit.default aten._native_batch_norm_legit.no_stats aten._pdist_forward.default
aten._prelu_kernel.default aten._prelu_kernel_backward.default aten._safe_softmax.default
aten._scaled_dot_product_cudnn_attention.default aten._scaled_dot_product_cudnn_attention_backward.default
aten._scaled_dot_product_efficient_attention.default aten._scaled_dot_product_efficient_attention_backward.default
aten._scaled_dot_product_flash_attention.default aten._scaled_dot_product_flash_attention_backward.default
aten._softmax.default aten._softmax_backward_data.default aten._thnn_fused_gru_cell.default
aten._thnn_fused_gru_cell_backward.default aten._thnn_fused_lstm_cell.default
aten._thnn_fused_lstm_cell_backward_impl.default aten._to_copy.default aten._upsample_bilinear2d_aa.default
aten._upsample_bilinear2d_aa_backward.default aten._upsample_nearest_exact1d.default
aten._upsample_nearest_exact1d_backward.default aten._upsample_nearest_exact2d.default
aten._upsample_nearest_exact2d_backward.default aten._use_cudnn_ctc_loss.Tensor aten._use_cudnn_ctc_loss.default
aten._use_miopen_ctc_loss.Tensor aten._use_miopen_ctc_loss.default aten._weight_norm_interface.default
aten._weight_norm_interface_backward.default aten.abs.default aten.abs_.default aten.acos.default aten.acos_.default
aten.acosh.default aten.acosh_.default aten.adaptive_max_pool2d.default aten.adaptive_max_pool2d_backward.default
aten.adaptive_max_pool3d.default aten.adaptive_max_pool3d_backward.default aten.add.Scalar aten.add.Tensor
aten.add_.Scalar aten.add_.Tensor aten.addbmm.default aten.addcdiv.default aten.addcdiv_.default
aten.addcmul.default aten.addcmul_.default aten.addmm.default aten.addmm.out aten.addmm_.default aten.addmv.default
aten.addmv_.default aten.addr.default aten.addr_.default aten.alias_copy.default aten.all.default aten.all.dim
aten.all.dims aten.amax.default aten.amax.out aten.amin.default aten.aminmax.default aten.angle.default
aten.any.default aten.any.dim aten.any.dims aten.arange.default aten.arange.start aten.arange.start_step
aten.argmax.default aten.argmin.default aten.as_strided_.default aten.as_strided_copy.default
aten.as_strided_scatter.default aten.asin.default aten.asin_.default aten.asinh.default aten.asinh_.default
aten.atan.default aten.atan2.default aten.atan2_.default aten.atan_.default aten.atanh.default aten.atanh_.default
aten.avg_pool2d.default aten.avg_pool2d_backward.default aten.avg_pool3d.default aten.avg_pool3d_backward.default
aten.baddbmm.default aten.baddbmm_.default aten.bernoulli_.float aten.binary_cross_entropy_backward.default
aten.bitwise_and.Tensor aten.bitwise_and_.Tensor aten.bitwise_left_shift.Tensor aten.bitwise_left_shift_.Tensor
aten.bitwise_not.default aten.bitwise_not_.default aten.bitwise_or.Tensor aten.bitwise_or_.Tensor
aten.bitwise_right_shift.Tensor aten.bitwise_right_shift_.Tensor aten.bitwise_xor.Tensor aten.bitwise_xor_.Tensor
aten.block_diag.default aten.bmm.default aten.bucketize.Tensor aten.cat.default aten.cauchy_.default
aten.ceil.default aten.ceil_.default aten.celu.default aten.celu_.default aten.channel_shuffle.default
aten.cholesky.default aten.clamp.Tensor aten.clamp.default aten.clamp_.Tensor aten.clamp_.default
aten.clamp_max.Tensor aten.clamp_max_.Tensor aten.clamp_min.Tensor aten.clamp_min.default aten.clamp_min_.Tensor
aten.clamp_min_.default aten.clone.default aten.col2im.default aten.complex.default aten.conj_physical_.default
aten.constant_pad_nd.default aten.copy_.default aten.copysign.Scalar aten.copysign.Tensor aten.copysign_.Scalar
aten.copysign_.Tensor aten.cos.default aten.cos_.default aten.cosh.default aten.cosh_.default
aten.count_nonzero.default aten.count_nonzero.dim_IntList aten.cudnn_batch_norm.default
aten.cudnn_batch_norm_backward.default aten.cummax.default aten.cummin.default aten.cumprod.default
aten.cumsum.default aten.deg2rad.default aten.deg2rad_.default aten.diag_embed.default
aten.diagonal_backward.default aten.diagonal_copy.default aten.diagonal_scatter.default aten.digamma.default
aten.digamma_.default aten.div.Scalar aten.div.Tensor aten.div.Tensor_mode aten.div.out aten.div_.Scalar
aten.div_.Tensor aten.div_.Tensor_mode aten.dot.default aten.elu.default aten.elu_.default aten.elu_backward.default
aten.embedding.default aten.embedding_dense_backward.default aten.empty.memory_format aten.empty_like.default
aten.empty_permuted.default aten.empty_strided.default aten.eq.Scalar aten.eq.Tensor aten.eq_.Tensor
aten.erf.default aten.erf_.default aten.erfc.default aten.erfc_.default aten.exp.default aten.exp2.default
aten.exp2_.default aten.exp_.default aten.expand_copy.default aten.expm1.default aten.expm1_.default
aten.exponential_.default aten.eye.default aten.eye.m aten.eye.m_out aten.fill.Scalar aten.fill_.Scalar
aten.fill_.Tensor aten.flip.default aten.floor.default aten.floor_.default aten.floor_divide.default
aten.floor_divide_.Tensor aten.fmax.default aten.fmin.default aten.fmod.Tensor aten.fmod_.Tensor aten.frac.default
aten.frac_.default aten.fractional_max_pool2d.default aten.fractional_max_pool2d_backward.default
aten.fractional_max_pool3d.default aten.fractional_max_pool3d_backward.default aten.frexp.Tensor aten.full.default
aten.full_like.default aten.gather.default aten.gcd.default aten.ge.Scalar aten.ge.Tensor aten.ge_.Tensor
aten.gelu.default aten.gelu_backward.default aten.geometric_.default aten.glu.default aten.glu_backward.default
aten.grid_sampler_2d.default aten.grid_sampler_2d_backward.default aten.grid_sampler_3d.default
aten.grid_sampler_3d_backward.default aten.gt.Scalar aten.gt.Tensor aten.gt_.Tensor aten.hardshrink.default
aten.hardshrink_backward.default aten.hardsigmoid.default aten.hardsigmoid_.default
aten.hardsigmoid_backward.default aten.hardswish.default aten.hardswish_backward.default aten.hardtanh.default
aten.hardtanh_backward.default aten.hash_tensor.default aten.heaviside.default aten.heaviside_.default
aten.huber_loss.default aten.huber_loss_backward.default aten.hypot.default aten.hypot_.default aten.igamma.default
aten.igamma_.default aten.igammac.default aten.igammac_.default aten.im2col.default aten.index_add.default
aten.index_add_.default aten.index_copy.default aten.index_copy_.default aten.index_fill.int_Scalar
aten.index_fill.int_Tensor aten.index_fill_.int_Scalar aten.index_fill_.int_Tensor aten.index_put_.default
aten.index_select.default aten.isnan.default aten.isneginf.default aten.isposinf.default aten.kthvalue.default
aten.lcm.default aten.le.Scalar aten.le.Tensor aten.le_.Tensor aten.leaky_relu.default aten.leaky_relu_.default
aten.leaky_relu_backward.default aten.lerp.Scalar aten.lerp.Tensor aten.lerp_.Scalar aten.lerp_.Tensor
aten.lgamma.default aten.lgamma_.default aten.linalg_cholesky_ex.default aten.linalg_cross.default
aten.linalg_householder_product.default aten.linalg_ldl_factor_ex.default aten.linalg_lu_solve.default
aten.linalg_vector_norm.default aten.linspace.Scalar_Tensor aten.linspace.Tensor_Scalar aten.linspace.Tensor_Tensor
aten.linspace.default aten.log.default aten.log10.default aten.log10_.default aten.log1p.default aten.log1p_.default
aten.log2.default aten.log2_.default aten.log_.default aten.log_normal_.default aten.log_sigmoid_backward.default
aten.log_sigmoid_forward.default aten.logaddexp.default aten.logaddexp2.default aten.logcumsumexp.default
aten.logical_and.default aten.logical_and_.default aten.logical_not.default aten.logical_not_.default
aten.logical_or.default aten.logical_or_.default aten.logical_xor.default aten.logical_xor_.default
aten.logit.default aten.logit_.default aten.logit_backward.default aten.logspace.Scalar_Tensor
aten.logspace.Tensor_Scalar aten.logspace.Tensor_Tensor aten.logspace.default aten.logsumexp.default aten.lt.Scalar
aten.lt.Tensor aten.lt_.Tensor aten.masked_fill.Scalar aten.masked_fill.Tensor aten.masked_fill_.Scalar
aten.masked_fill_.Tensor aten.masked_select.default aten.max.default aten.max.dim
aten.max_pool2d_with_indices.default aten.max_pool2d_with_indices_backward.default
aten.max_pool3d_with_indices.default aten.max_pool3d_with_indices_backward.default aten.max_unpool2d.default
aten.max_unpool3d.default aten.maximum.default aten.mean.default aten.mean.dim aten.median.default aten.median.dim
aten.min.default aten.min.dim aten.minimum.default aten.mish.default aten.mish_.default aten.mish_backward.default
aten.mm.default aten.mm.dtype_out aten.mm.out aten.mse_loss.default aten.mse_loss_backward.default aten.mul.Scalar
aten.mul.Tensor aten.mul.out aten.mul_.Scalar aten.mul_.Tensor aten.multi_margin_loss_backward.default
aten.multilabel_margin_loss_backward.default aten.multinomial.default aten.mv.default aten.nan_to_num.default
aten.nan_to_num_.default aten.nanmedian.dim aten.nansum.default aten.narrow_copy.default aten.native_dropout.default
aten.native_dropout_backward.default aten.native_layer_norm.default aten.ne.Scalar aten.ne.Tensor aten.ne_.Tensor
aten.neg.default aten.neg_.default aten.new_empty.default aten.new_empty_strided.default aten.new_full.default
aten.new_ones.default aten.new_zeros.default aten.nextafter.default aten.nextafter_.default
aten.nll_loss2d_backward.default aten.nll_loss2d_forward.default aten.nll_loss_backward.default
aten.nll_loss_forward.default aten.nonzero.default aten.norm.ScalarOpt_dim aten.normal.float_float
aten.normal_.default aten.ones.default aten.ones_like.default aten.permute_copy.default aten.pixel_shuffle.default
aten.pixel_unshuffle.default aten.polar.default aten.polygamma.default aten.pow.Tensor_Scalar aten.pow.Tensor_Tensor
aten.pow_.Scalar aten.pow_.Tensor aten.prod.default aten.prod.dim_int aten.put.default aten.put_.default
aten.rad2deg.default aten.rad2deg_.default aten.rand.default aten.randint.default aten.randint.low
aten.randint_like.default aten.randint_like.low_dtype aten.randn.default aten.randn_like.default
aten.random_.default aten.random_.from aten.random_.to aten.randperm.default aten.randperm.generator
aten.reciprocal.default aten.reciprocal_.default aten.reflection_pad1d.default
aten.reflection_pad1d_backward.default aten.reflection_pad2d.default aten.reflection_pad2d_backward.default
aten.reflection_pad3d.default aten.reflection_pad3d_backward.default aten.relu.default aten.relu_.default
aten.remainder.Scalar aten.remainder.Tensor aten.remainder_.Tensor aten.repeat.default
aten.replication_pad1d.default aten.replication_pad1d_backward.default aten.replication_pad2d.default
aten.replication_pad2d_backward.default aten.replication_pad3d.default aten.replication_pad3d_backward.default
aten.resize_.default aten.resize_as_.default aten.rot90.default aten.round.decimals aten.round.default
aten.round_.decimals aten.round_.default aten.rrelu_with_noise.default aten.rrelu_with_noise_.default
aten.rrelu_with_noise_backward.default aten.rsqrt.default aten.rsqrt_.default aten.rsub.Scalar aten.rsub.Tensor
aten.scalar_tensor.default aten.scatter.reduce aten.scatter.src aten.scatter.value aten.scatter.value_reduce
aten.scatter_.reduce aten.scatter_.src aten.scatter_.value aten.scatter_.value_reduce aten.scatter_add.default
aten.scatter_add_.default aten.searchsorted.Tensor aten.select_backward.default aten.select_scatter.default
aten.set_.source_Tensor aten.sgn.default aten.sgn_.default aten.sigmoid.default aten.sigmoid_.default
aten.sigmoid_backward.default aten.sign.default aten.sign_.default aten.signbit.default aten.silu.default
aten.silu_.default aten.silu_backward.default aten.sin.default aten.sin_.default aten.sinc.default
aten.sinc_.default aten.sinh.default aten.sinh_.default aten.slice_backward.default aten.slice_scatter.default
aten.smooth_l1_loss.default aten.smooth_l1_loss_backward.default aten.softplus.default
aten.softplus_backward.default aten.softshrink.default aten.softshrink_backward.default aten.sort.default
aten.sort.stable aten.special_airy_ai.default aten.special_bessel_j0.default aten.special_bessel_j1.default
aten.special_bessel_y0.default aten.special_bessel_y1.default aten.special_chebyshev_polynomial_t.default
aten.special_chebyshev_polynomial_u.default aten.special_chebyshev_polynomial_v.default
aten.special_chebyshev_polynomial_w.default aten.special_erfcx.default aten.special_hermite_polynomial_h.default
aten.special_hermite_polynomial_he.default aten.special_laguerre_polynomial_l.default
aten.special_legendre_polynomial_p.default aten.special_log_ndtr.default aten.special_modified_bessel_i0.default
aten.special_modified_bessel_i1.default aten.special_modified_bessel_k0.default
aten.special_modified_bessel_k1.default aten.special_ndtri.default aten.special_scaled_modified_bessel_k0.default
aten.special_scaled_modified_bessel_k1.default aten.special_shifted_chebyshev_polynomial_t.default
aten.special_shifted_chebyshev_polynomial_u.default aten.special_shifted_chebyshev_polynomial_v.default
aten.special_shifted_chebyshev_polynomial_w.default aten.special_spherical_bessel_j0.default
aten.special_xlog1py.default aten.special_zeta.default aten.split_with_sizes_copy.default aten.sqrt.default
aten.sqrt_.default aten.squeeze_.default aten.squeeze_.dim aten.squeeze_.dims aten.squeeze_copy.default
aten.squeeze_copy.dim aten.stack.default aten.std.correction aten.std_mean.correction aten.sub.Scalar
aten.sub.Tensor aten.sub_.Tensor aten.sum.default aten.sum.dim_IntList aten.t_.default aten.t_copy.default
aten.take.default aten.tan.default aten.tan_.default aten.tanh.default aten.tanh_.default aten.tanh_backward.default
aten.threshold.default aten.threshold_.default aten.threshold_backward.default aten.topk.default aten.trace.default
aten.transpose_.default aten.transpose_copy.int aten.tril.default aten.tril_.default aten.tril_indices.default
aten.triu.default aten.triu_.default aten.triu_indices.default aten.trunc.default aten.trunc_.default
aten.unbind_copy.int aten.unfold_copy.default aten.uniform_.default aten.unsqueeze_.default
aten.unsqueeze_copy.default aten.upsample_bicubic2d.default aten.upsample_bicubic2d_backward.default
aten.upsample_bilinear2d.default aten.upsample_bilinear2d_backward.default aten.upsample_linear1d.default
aten.upsample_linear1d_backward.default aten.upsample_nearest1d.default aten.upsample_nearest1d_backward.default
aten.upsample_nearest2d.default aten.upsample_nearest2d_backward.default aten.upsample_trilinear3d.default
aten.upsample_trilinear3d_backward.default aten.var.correction aten.var_mean.correction aten.vdot.default
aten.view_copy.default aten.where.self aten.xlogy.Tensor aten.xlogy_.Tensor aten.zero_.default aten.zeros.default
aten.zeros_like.default
"""
_ABOVE = """
aten.index_put.default
"""
EXACT = frozenset(_EXACT.split())
"""The peak was that of the kernel in every call."""
ABOVE = frozenset(_ABOVE.split())
"""Here the model was above the kernel at least once."""
BOUNDS: dict[str, tuple[float, int]] = {
    "aten._cdist_backward.default": (8.0, 512),
    "aten._cdist_forward.default": (0.0, 544),
    "aten._chunk_cat.default": (1.53, 2688),
    "aten._ctc_loss.Tensor": (0.01, 2048),
    "aten._ctc_loss.default": (0.01, 2048),
    "aten._ctc_loss_backward.Tensor": (0.03, 2048),
    "aten._ctc_loss_backward.default": (0.03, 2048),
    "aten._efficient_attention_backward.default": (3.84, 3584),
    "aten._embedding_bag_backward.default": (7.64, 7168),
    "aten._flash_attention_forward.default": (0.01, 2048),
    "aten._foreach_max.default": (0.01, 11776),
    "aten._linalg_check_errors.default": (0.0, 1026),
    "aten._linalg_det.default": (0.0, 1552),
    "aten._linalg_slogdet.default": (0.0, 2064),
    "aten._pack_padded_sequence.default": (0.34, 1536),
    "aten._pdist_backward.default": (13.11, 512),
    "aten._segment_reduce_backward.default": (19.4, 1536),
    "aten._to_sparse.default": (10.27, 2563),
    "aten._to_sparse.sparse_dim": (10.27, 2563),
    "aten._trilinear.default": (0.82, 8192),
    "aten._unique.default": (4.23, 3119),
    "aten._unique2.default": (0.45, 6161),
    "aten._unsafe_masked_index.default": (7.38, 4096),
    "aten._unsafe_masked_index_put_accumulate.default": (14.34, 18432),
    "aten._upsample_nearest_exact3d.default": (1.0, 1024),
    "aten._upsample_nearest_exact3d_backward.default": (0.88, 512),
    "aten.addbmm_.default": (0.01, 0),
    "aten.allclose.default": (2.5, 6224),
    "aten.batch_norm_backward.default": (0.0, 2056),
    "aten.bernoulli.default": (1.0, 524),
    "aten.binary_cross_entropy.default": (0.02, 516),
    "aten.binary_cross_entropy_with_logits.default": (0.08, 1024),
    "aten.bincount.default": (0.64, 1552),
    "aten.convolution.default": (1.0, 5120),
    "aten.convolution_backward.default": (0.7, 8192),
    "aten.cumprod_.default": (0.0, 1791),
    "aten.cumsum_.default": (0.0, 520),
    "aten.dist.default": (1.0, 562),
    "aten.equal.default": (0.26, 1026),
    "aten.histc.default": (0.19, 1040),
    "aten.index.Tensor": (0.08, 1534),
    "aten.index_put.default": (11.42, 1536),
    "aten.index_reduce.default": (0.75, 1552),
    "aten.index_reduce_.default": (0.75, 1552),
    "aten.isin.Tensor_Tensor": (1.72, 1024),
    "aten.isinf.default": (0.8, 512),
    "aten.ldexp.Tensor": (0.34, 1032),
    "aten.ldexp_.default": (0.34, 1036),
    "aten.linalg_lu.default": (0.57, 4096),
    "aten.linalg_lu_factor_ex.default": (0.09, 2048),
    "aten.linalg_matrix_exp.default": (2.12, 5120),
    "aten.linalg_solve_triangular.default": (0.49, 1552),
    "aten.lu_unpack.default": (0.16, 2048),
    "aten.masked_scatter.default": (1.54, 0),
    "aten.masked_scatter_.default": (9.97, 1536),
    "aten.masked_scatter_backward.default": (9.93, 2560),
    "aten.mode.default": (0.96, 1024),
    "aten.multi_margin_loss.default": (0.15, 512),
    "aten.multilabel_margin_loss_forward.default": (0.05, 1024),
    "aten.nanmedian.default": (2.75, 4904),
    "aten.native_batch_norm.default": (0.02, 2048),
    "aten.native_batch_norm_backward.default": (0.01, 3080),
    "aten.native_group_norm.default": (0.7, 3080),
    "aten.native_group_norm_backward.default": (0.66, 3616),
    "aten.native_layer_norm_backward.default": (0.04, 4096),
    "aten.nonzero_static.default": (0.19, 1036),
    "aten.normal.Tensor_float": (0.5, 536),
    "aten.pow.Scalar": (0.08, 520),
    "aten.renorm.default": (0.06, 1024),
    "aten.renorm_.default": (0.06, 1024),
    "aten.repeat_interleave.Tensor": (15.79, 1024),
    "aten.roll.default": (0.5, 512),
    "aten.scatter_reduce.two": (0.55, 1553),
    "aten.scatter_reduce_.two": (0.55, 1553),
    "aten.segment_reduce.default": (19.4, 3367),
    "aten.soft_margin_loss.default": (0.02, 516),
    "aten.soft_margin_loss_backward.default": (0.67, 1576),
    "aten.sparse_sampled_addmm.default": (0.08, 520),
    "aten.unfold_backward.default": (1.61, 584),
    "aten.unique_consecutive.default": (23.19, 4647),
    "aten.upsample_nearest3d.default": (1.0, 1024),
    "aten.upsample_nearest3d_backward.default": (0.88, 512),
}
"""The most that the peak was above: so many times the bytes of its tensors, and so many bytes."""
