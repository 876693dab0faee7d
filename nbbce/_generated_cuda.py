"""CUDA formulas.  Written by tools/generate_kernels.py: change the table there.

Formulas take and give one element; their text is that of _generated_cpu.py, so that their bits are.  The kernels that
call them are in nbbce/_elements_cuda.py, nbbce/_blocks_cuda.py and nbbce/_axes_cuda.py.
"""

import numpy as np

from nbbce._primitives_cuda import (
    bits_of_float32,
    bits_of_float64,
    float32_of_bits,
    float64_of_bits,
    fma,
    formula,
    quick_log2,
)

F32, F64, I32, I64, U32, U64 = np.float32, np.float64, np.int32, np.int64, np.uint32, np.uint64

# -log(1-t) = t + t^2 Q(t), t in [0, 1/2]; error relative to -log(1-t).
# Largest error of the fit: 3.8e-9.
NEAR_32_0 = F32(0.5000008940696716)
NEAR_32_1 = F32(0.33326324820518494)
NEAR_32_2 = F32(0.2518686354160309)
NEAR_32_3 = F32(0.17587462067604065)
NEAR_32_4 = F32(0.34006714820861816)
NEAR_32_5 = F32(-0.5922628045082092)
NEAR_32_6 = F32(1.9709149599075317)
NEAR_32_7 = F32(-2.476428270339966)
NEAR_32_8 = F32(1.7434298992156982)

# log(1+g) = g + g^2 P(g), g in [-1/3, 1/3]; error relative to log 2, the smallest |log t| for t <= 1/2.
# Largest error of the fit: 8.0e-9.
LOG_32_0 = F32(-0.4999988079071045)
LOG_32_1 = F32(0.3333298861980438)
LOG_32_2 = F32(-0.25010955333709717)
LOG_32_3 = F32(0.2002064436674118)
LOG_32_4 = F32(-0.16366253793239594)
LOG_32_5 = F32(0.138649582862854)
LOG_32_6 = F32(-0.15624457597732544)
LOG_32_7 = F32(0.14592225849628448)

# log(1+g) = g + g^2 P(g), g in [-1/3, 1/3]; error relative to log 2.
# Largest error of the fit: 1.4e-9.
SUMMED_LOG_32_0 = F32(-0.5000000596046448)
SUMMED_LOG_32_1 = F32(0.3333313763141632)
SUMMED_LOG_32_2 = F32(-0.24999235570430756)
SUMMED_LOG_32_3 = F32(0.2001403570175171)
SUMMED_LOG_32_4 = F32(-0.16696302592754364)
SUMMED_LOG_32_5 = F32(0.13955004513263702)
SUMMED_LOG_32_6 = F32(-0.12011447548866272)
SUMMED_LOG_32_7 = F32(0.1420656144618988)
SUMMED_LOG_32_8 = F32(-0.1353824883699417)

# -log(1-t) = 2 s + s z Q(z), s = t/(2-t), z = s^2 in [0, 1/9]; error relative to -log(1-t).
# Largest error of the fit: 1.4e-18.
NEAR_64_0 = 0.6666666666666631
NEAR_64_1 = 0.4000000000015591
NEAR_64_2 = 0.2857142854801096
NEAR_64_3 = 0.22222223960657989
NEAR_64_4 = 0.18181744220830015
NEAR_64_5 = 0.1538655411031854
NEAR_64_6 = 0.1330104378624353
NEAR_64_7 = 0.12105575890375067
NEAR_64_8 = 0.08342151794533276
NEAR_64_9 = 0.1701507729059949

# log m = 2 s + s z P(z), s = (m-1)/(m+1), m in [2/3, 4/3], z = s^2 in [0, 1/25]; error relative to log 2.
# Largest error of the fit: 5.0e-18.
LOG_64_0 = 0.6666666666667946
LOG_64_1 = 0.3999999999352775
LOG_64_2 = 0.2857142976361662
LOG_64_3 = 0.2222211383388979
LOG_64_4 = 0.18187212743280334
LOG_64_5 = 0.15235303239371203
LOG_64_6 = 0.15470539108417547

# exp(r) = 1 + r + r^2 P(r), r in [-0.3466, 0.3466]; error relative to exp(r).
# Largest error of the fit: 3.1e-9.
EXP_32_0 = F32(0.4999999403953552)
EXP_32_1 = F32(0.1666652113199234)
EXP_32_2 = F32(0.041668254882097244)
EXP_32_3 = F32(0.008368661627173424)
EXP_32_4 = F32(0.001382145332172513)

# exp(r) = 1 + r + r^2 P(r), r in [-0.3466, 0.3466]; error relative to exp(r).
# Largest error of the fit: 3.7e-18.
EXP_64_0 = 0.5000000000000011
EXP_64_1 = 0.16666666666666463
EXP_64_2 = 0.04166666666652902
EXP_64_3 = 0.008333333333471447
EXP_64_4 = 0.001388888894363024
EXP_64_5 = 0.0001984126954417155
EXP_64_6 = 2.4801493243781934e-05
EXP_64_7 = 2.755756000970146e-06
EXP_64_8 = 2.763017029321264e-07
EXP_64_9 = 2.500680027527008e-08

# log(1+e) = e - e^2/2 + e^3 H(e), e in [0, 1]; error relative to log(1+e).
# Largest error of the fit: 1.4e-9.
LOG1P_32_0 = F32(0.3333309292793274)
LOG1P_32_1 = F32(-0.249933123588562)
LOG1P_32_2 = F32(0.199263334274292)
LOG1P_32_3 = F32(-0.16228340566158295)
LOG1P_32_4 = F32(0.12679265439510345)
LOG1P_32_5 = F32(-0.08590809255838394)
LOG1P_32_6 = F32(0.044281650334596634)
LOG1P_32_7 = F32(-0.014669328927993774)
LOG1P_32_8 = F32(0.0022725630551576614)

# exp(r) = 1 + r + r^2 P(r), r in [-0.3466, 0.3466]; error relative to exp(r).
# Largest error of the fit: 5.2e-11.
EXP_WIDE_0 = 0.5000000067682234
EXP_WIDE_1 = 0.16666665869160288
EXP_WIDE_2 = 0.04166629496007223
EXP_WIDE_3 = 0.0083334970221574
EXP_WIDE_4 = 0.0013944658278496939
EXP_WIDE_5 = 0.00019790368145582442

# log(1+g) = g + g^2 P(g), g in [-1/3, 1/3]; error relative to log 2.
# Largest error of the fit: 1.9e-10.
LOG_WIDE_0 = -0.5000000411733028
LOG_WIDE_1 = 0.3333334748463018
LOG_WIDE_2 = -0.2499944629279828
LOG_WIDE_3 = 0.19998758349492846
LOG_WIDE_4 = -0.16689947981720418
LOG_WIDE_5 = 0.1432452884267087
LOG_WIDE_6 = -0.12083326883236865
LOG_WIDE_7 = 0.1055757379287254
LOG_WIDE_8 = -0.13263764761010882
LOG_WIDE_9 = 0.12687048800510448

# log(1+e) = e - e^2/2 + e^3 H(e), e in [0, 1]; error relative to log(1+e).
# Largest error of the fit: 1.7e-10.
LOG1P_WIDE_0 = 0.333332813181647
LOG1P_WIDE_1 = -0.24998277335539687
LOG1P_WIDE_2 = 0.19977318718456732
LOG1P_WIDE_3 = -0.1650446028424257
LOG1P_WIDE_4 = 0.13566600991965636
LOG1P_WIDE_5 = -0.10371255514843106
LOG1P_WIDE_6 = 0.06682726090824899
LOG1P_WIDE_7 = -0.032185325691963626
LOG1P_WIDE_8 = 0.009897413240496342
LOG1P_WIDE_9 = -0.001424246956992871

# log 2 = HIGH + LOW; HIGH is short, so that its product with an exponent is exact.
LOG2_HIGH_32, LOG2_LOW_32 = F32(0.693145751953125), F32(1.4286068203094173e-06)
LOG2_HIGH_64, LOG2_LOW_64 = 0.6931471805598903, 5.497923018708371e-14
LOG2_64 = 0.6931471805599453

# A logarithm is held at -100 by holding its argument at e^-100; the float32 one is scaled by 2^24, see below.
HELD_32, HELD_64 = F32(6.241251818611239e-37), 3.720075976020836e-44
# The bits of 2/3: the significand m of t = 2^e m is taken from [2/3, 4/3), which centres log m on 0.
TWO_THIRDS_32, TWO_THIRDS_64 = U32(0x3F2AAAAB), U64(0x3FE5555555555555)
EXPONENT_32, EXPONENT_64 = U32(0xFF800000), U64(0xFFF0000000000000)
# The floor under a denominator of the gradient (design: as in PyTorch and Paddle), and its reciprocal in two parts.
FLOOR_32, FLOOR_64 = F32(1e-12), 1e-12
BITS_OF_FLOOR_32 = U32(0x2B8CBCCC)
STEEP_32, STEEP_REST_32 = F32(999999995904.0), F32(4096.0)
STEEP_64, STEEP_REST_64 = 1e12, 0.0

# Adding and taking off 1.5 * 2^23 (2^52) rounds to an integer, which then stands in the low bits of the sum.
LOG2_E_32, ROUND_32 = F32(1.4426950216293335), F32(12582912.0)
LOG2_E_64, ROUND_64 = 1.4426950408889634, 6755399441055744.0
# Beyond LATE_FROM exp(-away) is kept 1/LATE times too large, so that what ends below the normal numbers is rounded
# there once, in the last step, after the weight.  From 86 on 2^96 keeps it normal up to 150, and below 2^-28, which
# added to 1 leaves 1; from 600 on 2^860 keeps it below 1, so that no weight makes it infinite before LATE is multiplied
# in.  Beyond HELD_AWAY it is 0, which is right for weights of up to 2^66, and 2^800 in float64.
HELD_AWAY_32, LATE_FROM_32, LATE_32 = F32(150.0), F32(86.0), F32(2.0**-96)
BITS_OF_LATE_FROM_32 = U32(0x42AC0000)
HELD_AWAY_64, LATE_FROM_64, LATE_64 = 1300.0, 600.0, 2.0**-860
# The same where float32 terms meet in float64: right for weights of up to 2^167.
HELD_WIDE, LATE_FROM_WIDE, LATE_WIDE = F32(220.0), F32(80.0), 2.0**-200
BITS_OF_LATE_FROM_WIDE = U32(0x42A00000)
# And for the powers of the focal loss, of which three may be multiplied.
HELD_FOCAL, LATE_FOCAL = 760.0, 2.0**-256
# The focal loss of float32 is float64 throughout and has no need of that: a power below e^-HELD_POWER, 2^-1009, is 0.
HELD_POWER = 700.0
MOST_GAMMA = 1e300  # as a factor, so that no slope is infinite
# Between these a scale is multiplied with in float32, beyond them in float64: no step of it over- or underflows.
LEAST_SCALE, MOST_SCALE = 2.0**-60, 2.0**60
BITS_OF_LEAST_SCALE, BITS_OF_MOST_SCALE = U64(0x3C30000000000000), U64(0x43B0000000000000)
# The logit where a mask leaves an element out: with y = 0 it costs exactly nothing.  A finite one makes no NaN.
BLANK_LOGIT = -1e30

# -log(1-t) = t + t^2 Q(t), t in [0, 1/2]; error relative to -log(1-t).
# Largest error of the fit: 7.0e-6.
NEAR_16_0 = F32(0.5006148219108582)
NEAR_16_1 = F32(0.31692036986351013)
NEAR_16_2 = F32(0.3882276117801666)
NEAR_16_3 = F32(-0.2804533839225769)
NEAR_16_4 = F32(0.8239045739173889)
MINUS_LOG2_32, HELD_LOG2_32 = F32(-0.6931471824645996), F32(-144.26950073242188)

# The tree of additions and the products: see _generated_cpu.py, whose numbers these are.
BLOCK, PIECE, LANES, HARD = 4096, 1024, 256, 1024
PRODUCTS_32, DEPTH_32, PRODUCTS_64, DEPTH_64 = 32, 8, 64, 4
LEAST_HARD_SUM_32, LEAST_HARD_SUM_64, START_LOG_64 = 4096 * 2.0**-25, 128.0, 24.375614488997478
# Products along an axis.
DEPTH = 16
LEAST_FACTOR, LARGEST_LOGIT, LEAST_LOGITS_SUM = U32(0x21800000), I32(0x42200000), 2.0**-64  # 2^-60; 40
NEAR_1 = 2.0**-20  # a product that is off by 16 * 2^-53 is this far from 1 to 2^-29 of it

# One element: x is the prediction, y the target, and
#
#     loss = -(y log x + (1-y) log(1-x)),    each logarithm held at -100 or above.
#
# Let t = min(x, 1-x), the distance to the nearer end.  It is exact: for x > 1/2, 1-x has no rounding error.  (Where
# 1-x < x is asked, one instruction makes t of both: 16384 float32 losses take 4.2 us, not 4.6.  In float64 it saves a
# processor 4 % and costs a device registers that it lacks.)
# So one logarithm is log t, and the other is log(1-t), whose argument need not be formed:
#
#     far  = -log t       t = 2^e m with m in [2/3, 4/3):  -(e log 2 + log m)
#     near = -log(1-t) = t + near_end(t)
#
#     loss = w_near * near + w_far * far,    (w_near, w_far) = (y, 1-y) if x > 1/2 else (1-y, y)
#
# That is one logarithm and one polynomial, and no branch.  Every step is + - * /, an explicit fma or a bit cast,
# each rounded once, so each target that runs this text gives the same bits.


# Q(t) of -log(1-t) = t + t^2 Q(t), for t in [0, 1/2].
@formula
def near_polynomial_float32(t):
    tt = t * t
    q = fma(NEAR_32_8, tt, NEAR_32_6)
    q = fma(q, tt, NEAR_32_4)
    q = fma(q, tt, NEAR_32_2)
    q = fma(q, tt, NEAR_32_0)
    q_odd = fma(NEAR_32_7, tt, NEAR_32_5)
    q_odd = fma(q_odd, tt, NEAR_32_3)
    q_odd = fma(q_odd, tt, NEAR_32_1)
    q = fma(q_odd, t, q)
    return q


# -log(1-t) - t for t in [0, 1/2].  With s = t/(2-t), -log(1-t) = 2 atanh s = 2s + s z Q(z), z = s^2;
# and 2s = t + t s, so what stands beside the exact t is s (t + z Q(z)).
@formula
def near_end_float64(t):
    s = t / (2.0 - t)
    z = s * s
    zz = z * z
    q = fma(NEAR_64_8, zz, NEAR_64_6)
    q = fma(q, zz, NEAR_64_4)
    q = fma(q, zz, NEAR_64_2)
    q = fma(q, zz, NEAR_64_0)
    q_odd = fma(NEAR_64_9, zz, NEAR_64_7)
    q_odd = fma(q_odd, zz, NEAR_64_5)
    q_odd = fma(q_odd, zz, NEAR_64_3)
    q_odd = fma(q_odd, zz, NEAR_64_1)
    q = fma(q_odd, z, q)
    return s * fma(z, q, t)


# t in [0, 1/2] as 2^e m: returns e and g = m-1, both exact, t held at e^-100 or above.
# Scaling by 2^24 makes a subnormal normal; subtracting the bits of 2/3 puts m into [2/3, 4/3).
@formula
def split_float32(t):
    scaled = t * F32(16777216.0)
    scaled = HELD_32 if scaled < HELD_32 else scaled
    bits = bits_of_float32(scaled)
    shift = U32(U32(bits - TWO_THIRDS_32) & EXPONENT_32)
    e = fma(F32(I32(shift)), F32(2.0**-23), F32(-24.0))
    return e, float32_of_bits(U32(bits - shift)) - F32(1.0)


# t as 2^e m, for any normal t > 0: returns e and m in [2/3, 4/3), both exact.
@formula
def split_float64(t):
    bits = bits_of_float64(t)
    shift = (bits - TWO_THIRDS_64) & EXPONENT_64
    return F64(I64(shift) >> I64(52)), float64_of_bits(bits - shift)


# e LOG2_LOW + log m, what is left of log(2^e m) beside the exact e LOG2_HIGH: with s = (m-1)/(m+1),
# log m = 2 atanh s = 2s + s z P(z), z = s^2.
@formula
def log_rest_float64(e, m):
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    zz = z * z
    p = fma(LOG_64_6, zz, LOG_64_4)
    p = fma(p, zz, LOG_64_2)
    p = fma(p, zz, LOG_64_0)
    p_odd = fma(LOG_64_5, zz, LOG_64_3)
    p_odd = fma(p_odd, zz, LOG_64_1)
    p = fma(p_odd, z, p)
    return fma(s, fma(z, p, 2.0), e * LOG2_LOW_64)


# P(g) of log(1+g) = g + g^2 P(g), for g in [-1/3, 1/3].
@formula
def log_polynomial_float32(g):
    gg = g * g
    p = fma(LOG_32_6, gg, LOG_32_4)
    p = fma(p, gg, LOG_32_2)
    p = fma(p, gg, LOG_32_0)
    p_odd = fma(LOG_32_7, gg, LOG_32_5)
    p_odd = fma(p_odd, gg, LOG_32_3)
    p_odd = fma(p_odd, gg, LOG_32_1)
    p = fma(p_odd, g, p)
    return p


# The loss, in the order that rounds least: the small terms first, each into the next fma.
# e LOG2_HIGH is exact, so no logarithm is ever rounded on its own; the rounding error of 1-y is put back,
# by the logarithm that it belongs to.
@formula
def loss_float32(x, y):
    r = F32(1.0) - x
    beyond_half = r < x
    t = r if beyond_half else x
    z = F32(1.0) - y
    z_error = (F32(1.0) - z) - y
    w_far = z if beyond_half else y
    w_near = y if beyond_half else z
    e, g = split_float32(t)
    tail = t * t * near_polynomial_float32(t)
    exact = e * LOG2_HIGH_32
    rest = fma(g * g, log_polynomial_float32(g), fma(e, LOG2_LOW_32, g))
    other = -(exact + rest) if beyond_half else t + tail
    small = fma(z_error, other, fma(-w_far, rest, w_near * tail))
    return fma(-w_far, exact, fma(w_near, t, small))


# The same in float64.
@formula
def loss_float64(x, y):
    beyond_half = x > 0.5
    t = 1.0 - x if beyond_half else x
    z = 1.0 - y
    z_error = (1.0 - z) - y
    w_far = z if beyond_half else y
    w_near = y if beyond_half else z
    e, m = split_float64(HELD_64 if t < HELD_64 else t)
    tail = near_end_float64(t)
    exact = e * LOG2_HIGH_64
    rest = log_rest_float64(e, m)
    other = -(exact + rest) if beyond_half else t + tail
    small = fma(z_error, other, fma(-w_far, rest, w_near * tail))
    return fma(-w_far, exact, fma(w_near, t, small))


# For sums of float32: what the loss is made of, before it is put together: t, Q(t), e and log m.  The
# polynomial has an order more than above, since log m is rounded too.
@formula
def terms_float32(x):
    r = F32(1.0) - x
    t = r if r < x else x
    e, g = split_float32(t)
    gg = g * g
    p = fma(SUMMED_LOG_32_8, gg, SUMMED_LOG_32_6)
    p = fma(p, gg, SUMMED_LOG_32_4)
    p = fma(p, gg, SUMMED_LOG_32_2)
    p = fma(p, gg, SUMMED_LOG_32_0)
    p_odd = fma(SUMMED_LOG_32_7, gg, SUMMED_LOG_32_5)
    p_odd = fma(p_odd, gg, SUMMED_LOG_32_3)
    p_odd = fma(p_odd, gg, SUMMED_LOG_32_1)
    p = fma(p_odd, g, p)
    return t, near_polynomial_float32(t), e, fma(gg, p, g)


# And the loss of these terms, put together in float64.  Only q and log m are rounded to float32: q counts
# for t^2 of it, and log m is at most 0.41 where log t is 0.69 or more, so this is good to 2^-25
# (loss_float32: 2^-23), and a sum of ten million equal elements is within 1 ULP still.
@formula
def wide_loss(x, y, t, q, e, log_m):
    w_far = 1.0 - y if x > F32(0.5) else y
    near = fma(t * t, q, t)
    far = fma(e, -LOG2_64, -log_m)
    return fma(w_far, far - near, near)


# The same for shares of the label with weights of their own: a stands for 1-y and b for y.  b may be
# infinite; of nothing it is nothing.
@formula
def shares_wide_loss(x, a, b, t, q, e, log_m):
    w_far, w_near = (a, b) if x > F32(0.5) else (b, a)
    near = fma(t * t, q, t)
    far = fma(e, -LOG2_64, -log_m)
    return fma(w_far, far, w_near * near if x != F32(1.0) else 0.0)


# The loss of such shares in float64, where an infinite b would give inf - inf: terms of log t have both
# signs.
@formula
def shares_loss_float64(x, a, b):
    b = 0.0 if b == np.inf and x == 1.0 else b
    beyond_half = x > 0.5
    t = 1.0 - x if beyond_half else x
    w_far, w_near = (a, b) if beyond_half else (b, a)
    e, m = split_float64(HELD_64 if t < HELD_64 else t)
    small = fma(-w_far, log_rest_float64(e, m), w_near * near_end_float64(t))
    loss = fma(-w_far, e * LOG2_HIGH_64, fma(w_near, t, small))
    return b if b == np.inf and x < 1.0 else loss


# What a number that float32 results are multiplied by leaves to do in float64: 1 between LEAST_SCALE and
# MOST_SCALE, all of it beyond them.
@formula
def scale_left_float64(factor):
    size = -factor if factor < 0.0 else factor
    return 1.0 if LEAST_SCALE <= size <= MOST_SCALE else factor


# A number that float32 results are multiplied by, as scale (1 + rest), and 1/scale; or 1, where all of it
# is left to do in float64.
@formula
def scale_parts_float64(factor):
    size = -factor if factor < 0.0 else factor
    factor = factor if LEAST_SCALE <= size <= MOST_SCALE else 1.0
    scale = F32(factor)
    inverse = F32(1.0) / scale
    return scale, inverse, F32(factor - F64(scale)) * inverse


# d loss / d x = (x-y) / (x(1-x)), scaled, where x(1-x) is above 1e-12: n/d, and d.  The rounding errors
# of d, of the division and of the scale are put back by the last fma; with that of n, within 1.5 ULP.
@formula
def inner_gradient_float32(x, y, scale, inverse, rest):
    n = x - y
    r = F32(1.0) - x
    d = x * r
    d_error = fma(x, (F32(1.0) - r) - x, fma(x, r, -d))
    q = scale / d
    q_error = fma(fma(-q, d_error, fma(-q, d, scale)), inverse, rest)
    return fma(n, q, q * (n * q_error)), d


# The same anywhere, with x(1-x) no smaller than 1e-12.  Within 1e-12 of an end this floor rules:
# u/(1-t) - v 1e12, where v is the weight of the far end and 1/(1-t) = 1+t+t^2 to the last bit.  What
# is small beside the largest terms, even where they cancel, is added with the scale: two roundings in all.
@formula
def gradient_float32(x, y, scale, inverse, rest):
    q, _ = inner_gradient_float32(x, y, scale, inverse, rest)
    beyond_half = x > F32(0.5)
    t = F32(1.0) - x if beyond_half else x
    z = F32(1.0) - y
    z_error = (F32(1.0) - z) - y
    v = z if beyond_half else y
    u = y if beyond_half else z
    v_error = z_error if beyond_half else F32(0.0)
    u_error = F32(0.0) if beyond_half else z_error
    steep = fma(-v, STEEP_32, u)
    small = fma(-v_error, STEEP_32, fma(-v, STEEP_REST_32, fma(u, fma(t, t, t), u_error)))
    steep = fma(steep, scale, scale * fma(steep, rest, small))
    steep = -steep if beyond_half else steep
    return steep if t <= FLOOR_32 else q


# The same in float64, without a scale.  Numerator n and denominator d are kept with their rounding
# errors (two-sum; fma), and the quotient q = n (1/d) is corrected by its residual: within 1 ULP, where
# plain steps are within 2.5.
@formula
def gradient_float64(x, y):
    n = x - y
    back = n - x
    n_error = (x - (n - back)) - (y + back)
    r = 1.0 - x
    d = x * r
    d_error = fma(x, (1.0 - r) - x, fma(x, r, -d))
    reciprocal = 1.0 / d
    q = n * reciprocal
    q = fma(fma(-q, d_error, fma(-q, d, n) + n_error), reciprocal, q)
    beyond_half = x > 0.5
    t = r if beyond_half else x
    z = 1.0 - y
    z_error = (1.0 - z) - y
    v = z if beyond_half else y
    u = y if beyond_half else z
    v_error = z_error if beyond_half else 0.0
    u_error = 0.0 if beyond_half else z_error
    steep = fma(-v_error, STEEP_64, fma(-v, STEEP_REST_64, fma(-v, STEEP_64, u) + fma(u, fma(t, t, t), u_error)))
    steep = -steep if beyond_half else steep
    return steep if t <= FLOOR_64 else q


# The gradient of such shares, a/(1-x) - b/x.  The numerator a x - b (1-x) cancels at x = b/(a+b), so its
# products are kept with their errors too.  The residual of an infinite quotient is NaN; and u may be
# infinite where t is 0, so there is no fma(u, t, u).
@formula
def shares_gradient_float64(x, a, b):
    r = 1.0 - x
    r_error = (1.0 - r) - x
    p = a * x
    m = b * r
    n = p - m
    back = n - p
    n_error = (p - (n - back)) - (m + back) + (fma(a, x, -p) - fma(b, r_error, fma(b, r, -m)))
    d = x * r
    d_error = fma(x, r_error, fma(x, r, -d))
    reciprocal = 1.0 / d
    q = n * reciprocal
    better = fma(fma(-q, d_error, fma(-q, d, n) + n_error), reciprocal, q)
    q = better if better == better else q
    t, u, v = (r, b, a) if x > 0.5 else (x, a, b)
    steep = fma(-v, STEEP_64, u * (1.0 + t))
    steep = -steep if x > 0.5 else steep
    return steep if t <= FLOOR_64 else q


# Logits: z is the logit of the prediction, x = sigma(z) = 1/(1+exp(-z)), which is not formed.  With e = exp(-|z|),
#
#     -log x = max(-z, 0) + log(1+e),    -log(1-x) = max(z, 0) + log(1+e),
#
# so |z| is paid by the label's share on the wrong side (1-y for z > 0, else y), and log(1+e) by all of it:
#
#     loss     = wrong |z| + log(1+e)
#     gradient = sigma(z) - y = (wrong - right e) / (1+e),  its sign turned for z <= 0
#     hessian  = e / (1+e)^2
#
# Each is a sum of terms of one sign or has its cancellation in the labels alone, so both tails are true.  An infinite
# logit that nothing on the wrong side pays for costs 0: |z| is then not multiplied by that 0.


# exp(-away) = (1 + (r + s)) 2^k for away in [0, 220]: returns r, s and a number with k in its low bits.
# -away = k log 2 + r + low; k LOG2_HIGH is exact and so is r.  s is small: only r + s is left to round.
@formula
def exp_parts_float32(away):
    shifted = fma(away, -LOG2_E_32, ROUND_32)
    k = shifted - ROUND_32
    r = fma(k, -LOG2_HIGH_32, -away)
    low = k * -LOG2_LOW_32
    v = r + low
    vv = v * v
    p = fma(EXP_32_4, vv, EXP_32_2)
    p = fma(p, vv, EXP_32_0)
    p_odd = fma(EXP_32_3, vv, EXP_32_1)
    p = fma(p_odd, v, p)
    return r, fma(vv, p, low), shifted


# The same in float64, for away in [0, 1300].
@formula
def exp_parts_float64(away):
    shifted = fma(away, -LOG2_E_64, ROUND_64)
    k = shifted - ROUND_64
    r = fma(k, -LOG2_HIGH_64, -away)
    low = k * -LOG2_LOW_64
    v = r + low
    vv = v * v
    p = fma(EXP_64_8, vv, EXP_64_6)
    p = fma(p, vv, EXP_64_4)
    p = fma(p, vv, EXP_64_2)
    p = fma(p, vv, EXP_64_0)
    p_odd = fma(EXP_64_9, vv, EXP_64_7)
    p_odd = fma(p_odd, vv, EXP_64_5)
    p_odd = fma(p_odd, vv, EXP_64_3)
    p_odd = fma(p_odd, vv, EXP_64_1)
    p = fma(p_odd, v, p)
    return r, fma(vv, p, low), shifted


# exp(-away) for away >= 0, as (u + error) late: late is 1 unless the product may be subnormal, and
# error is by how much u was rounded; that of r + s is lost.
@formula
def exp_float32(away):
    far, gone = away > LATE_FROM_32, away > HELD_AWAY_32
    r, s, shifted = exp_parts_float32(HELD_AWAY_32 if gone else away)
    k = U32(bits_of_float32(shifted) + (U32(96) if far else U32(0)))
    power = float32_of_bits(U32(U32(k << U32(23)) + U32(0x3F800000)))
    power = F32(0.0) if gone else power
    v = r + s
    u = fma(v, power, power)
    return u, fma(v, power, power - u), LATE_32 if far else F32(1.0)


# The same in float64.
@formula
def exp_float64(away):
    far, gone = away > LATE_FROM_64, away > HELD_AWAY_64
    r, s, shifted = exp_parts_float64(HELD_AWAY_64 if gone else away)
    k = U64(bits_of_float64(shifted) + (U64(860) if far else U64(0)))
    power = float64_of_bits(U64(U64(k << U64(52)) + U64(0x3FF0000000000000)))
    power = 0.0 if gone else power
    v = r + s
    u = fma(v, power, power)
    return u, fma(v, power, power - u), LATE_64 if far else 1.0


# 1 - log(1+u)/u, by how much log(1+u) falls short of u in [0, 1]: log(1+u) = u - u^2/2 + u^3 H(u).
@formula
def log1p_short_float32(u):
    h = fma(LOG1P_32_8, u, LOG1P_32_7)
    h = fma(h, u, LOG1P_32_6)
    h = fma(h, u, LOG1P_32_5)
    h = fma(h, u, LOG1P_32_4)
    h = fma(h, u, LOG1P_32_3)
    h = fma(h, u, LOG1P_32_2)
    h = fma(h, u, LOG1P_32_1)
    h = fma(h, u, LOG1P_32_0)
    return u * fma(-u, h, F32(0.5))


# The same in float64.  With s = u/(2+u), log(1+u) = 2 atanh s = 2s + s z Q(z), z = s^2 in [0, 1/9]: the
# polynomial of near_end_float64; and 2s = u - u s, so log(1+u) = u - u (s - z Q(z) / (2+u)).
@formula
def log1p_short_float64(u):
    over = 1.0 / (2.0 + u)
    s = u * over
    z = s * s
    zz = z * z
    q = fma(NEAR_64_8, zz, NEAR_64_6)
    q = fma(q, zz, NEAR_64_4)
    q = fma(q, zz, NEAR_64_2)
    q = fma(q, zz, NEAR_64_0)
    q_odd = fma(NEAR_64_9, zz, NEAR_64_7)
    q_odd = fma(q_odd, zz, NEAR_64_5)
    q_odd = fma(q_odd, zz, NEAR_64_3)
    q_odd = fma(q_odd, zz, NEAR_64_1)
    q = fma(q_odd, z, q)
    return fma(-z * over, q, s)


# The loss.  `wrong` is the label's share on the wrong side and `error` its rounding error; `whole` is
# the share of log(1+e), 1 but for weights.  What comes second is to be multiplied in last, after any
# weight: `late`, where log(1+e) is all there is, else 1.  So it is with the derivatives.  (`error` is
# multiplied by a held |z|, since inf - inf is NaN.)
@formula
def loss_of_sides_float32(z, wrong, error, whole):
    a = -z if z < F32(0.0) else z
    u, _, late = exp_float32(a)
    short = log1p_short_float32(u * late)
    clear = wrong == F32(0.0)
    whole *= F32(1.0) if clear else late
    paid = fma(wrong, F32(0.0) if clear else a, error * (HELD_AWAY_32 if a > HELD_AWAY_32 else a))
    u *= whole
    return fma(-u, short, paid) + u, late if clear else F32(1.0)


# The same in float64.  What u was rounded by counts for 1/(1+u) of it, for which 3/4 will do:
# within 1.8 ULP, and 2.3 without it.
@formula
def loss_of_sides_float64(z, wrong, error, whole):
    a = -z if z < 0.0 else z
    u, u_error, late = exp_float64(a)
    short = log1p_short_float64(u * late)
    clear = wrong == 0.0
    whole *= 1.0 if clear else late
    paid = fma(wrong, 0.0 if clear else a, error * (HELD_AWAY_64 if a > HELD_AWAY_64 else a))
    u *= whole
    return fma(-u, short, fma(whole * u_error, 0.75, paid)) + u, late if clear else 1.0


# The gradient, scaled, from e = exp(-|z|) = (1+v) power: n/d with d = 1+e, and n = 1 - y d for z > 0,
# else e - y d.  That needs no 1-y, and `near` is exact for the right one of hard labels.  The rounding
# errors of e, of d, of the last step of n, of the division and of the scale are all put back by the last
# fma: within 1.6 ULP of the larger of sigma(z) and y, scale and all.
@formula
def gradient_of_exp_float32(z, y, v, power, scale, inverse, rest):
    e = fma(v, power, power)
    e_error = fma(v, power, power - e)
    d = F32(1.0) + e
    d_error = ((F32(1.0) - d) + e) + e_error
    near = fma(-y, d, F32(1.0) if z > F32(0.0) else e)
    n = fma(-y, d_error, near)
    n_error = fma(-y, d_error, near - n) + (F32(0.0) if z > F32(0.0) else e_error)
    q = scale / d
    q_error = fma(fma(-q, d_error, fma(-q, d, scale)), inverse, rest)
    return fma(n, q, q * fma(n, q_error, n_error))


# The gradient in float64: n/d with n = wrong - right e and d = 1+e, its sign turned for z <= 0; the
# quotient corrected by its residual, in which the rounding errors of n, d and the shares are put back.
@formula
def gradient_of_sides_float64(z, wrong, wrong_error, right, right_error):
    a = -z if z < 0.0 else z
    u, _, late = exp_float64(a)
    clear = wrong == 0.0
    e = u * late
    v, last = (u, late) if clear else (e, 1.0)
    paid = right * v
    n = wrong - paid
    back = n - wrong
    n_error = (wrong - (n - back)) - (paid + back) - fma(right, v, -paid) + fma(-right_error, v, wrong_error)
    d = 1.0 + e
    reciprocal = 1.0 / d
    q = n * reciprocal
    q = fma(fma(-q, d, n) + fma(-q, (1.0 - d) + e, n_error), reciprocal, q)
    return q if z > 0.0 else -q, last


# The hessian, in the same way: whole e / (1+e)^2, within 1 ULP.
@formula
def hessian_of_sides_float32(z, whole):
    a = -z if z < F32(0.0) else z
    u, u_error, late = exp_float32(a)
    e = u * late
    root = F32(1.0) + e
    d = root * root
    d_error = fma(F32(2.0) * root, fma(u_error, late, (F32(1.0) - root) + e), fma(root, root, -d))
    reciprocal = F32(1.0) / d
    n = u * whole
    q = n * reciprocal
    return fma(fma(-q, d_error, fma(u_error, whole, fma(-q, d, n))), reciprocal, q), late


# The same in float64.
@formula
def hessian_of_sides_float64(z, whole):
    a = -z if z < 0.0 else z
    u, u_error, late = exp_float64(a)
    e = u * late
    root = 1.0 + e
    d = root * root
    d_error = fma(2.0 * root, fma(u_error, late, (1.0 - root) + e), fma(root, root, -d))
    reciprocal = 1.0 / d
    n = u * whole
    q = n * reciprocal
    return fma(fma(-q, d_error, fma(u_error, whole, fma(-q, d, n))), reciprocal, q), late


# The loss of a logit and its label.
@formula
def logits_loss_float32(z, y):
    rest = F32(1.0) - y
    wrong, error = (rest, (F32(1.0) - rest) - y) if z > F32(0.0) else (y, F32(0.0))
    return loss_of_sides_float32(z, wrong, error, F32(1.0))


# The same in float64.
@formula
def logits_loss_float64(z, y):
    rest = 1.0 - y
    wrong, error = (rest, (1.0 - rest) - y) if z > 0.0 else (y, 0.0)
    return loss_of_sides_float64(z, wrong, error, 1.0)


# The gradient of a logit and its label.
@formula
def logits_gradient_float32(z, y, scale, inverse, rest):
    a = -z if z < F32(0.0) else z
    far, gone = a > LATE_FROM_32, a > HELD_AWAY_32
    r, s, shifted = exp_parts_float32(HELD_AWAY_32 if gone else a)
    k = U32(bits_of_float32(shifted) + (U32(96) if far else U32(0)))
    power = float32_of_bits(U32(U32(k << U32(23)) + U32(0x3F800000)))
    power = F32(0.0) if gone else power
    late = LATE_32 if far else F32(1.0)
    clear = y == (F32(1.0) if z > F32(0.0) else F32(0.0))
    power *= F32(1.0) if clear else late
    return gradient_of_exp_float32(z, y, r + s, power, scale, inverse, rest), late if clear else F32(1.0)


# The same in float64.
@formula
def logits_gradient_float64(z, y):
    rest = 1.0 - y
    error = (1.0 - rest) - y
    wrong, wrong_error, right, right_error = (rest, error, y, 0.0) if z > 0.0 else (y, 0.0, rest, error)
    return gradient_of_sides_float64(z, wrong, wrong_error, right, right_error)


# The hessian of a logit and its label.
@formula
def logits_hessian_float32(z, y):
    return hessian_of_sides_float32(z, F32(1.0))


# The same in float64.
@formula
def logits_hessian_float64(z, y):
    return hessian_of_sides_float64(z, 1.0)


# The loss of a logit and such shares, a for 1-y and b for y.  b may be infinite, which leaves inf - inf where
# log(1+e) falls short of e; of nothing it is nothing.
@formula
def logits_shares_loss_float64(z, a, b):
    b = 0.0 if b == np.inf and z == np.inf else b
    loss, late = loss_of_sides_float64(z, a if z > 0.0 else b, 0.0, a + b)
    return b if b == np.inf and z < np.inf else loss, late


# The gradient of these.
@formula
def logits_shares_gradient_float64(z, a, b):
    b = 0.0 if b == np.inf and z == np.inf else b
    wrong, right = (a, b) if z > 0.0 else (b, a)
    gradient, late = gradient_of_sides_float64(z, wrong, 0.0, right, 0.0)
    return -b if b == np.inf and z < np.inf else gradient, late


# The hessian of these.
@formula
def logits_shares_hessian_float64(z, a, b):
    b = 0.0 if b == np.inf and (z == np.inf or z == -np.inf) else b
    hessian, late = hessian_of_sides_float64(z, a + b)
    return b if b == np.inf and z == z else hessian, late


# For sums of float32: exp(-|z|) = ((1 + r) + s) power, times LATE_WIDE beyond LATE_FROM_WIDE; h is H(e).
@formula
def logits_terms_float32(z):
    a = -z if z < F32(0.0) else z
    far = a > LATE_FROM_WIDE
    r, s, shifted = exp_parts_float32(HELD_WIDE if a > HELD_WIDE else a)
    k = U32(bits_of_float32(shifted) + (U32(200) if far else U32(0)))
    power = float32_of_bits(U32(U32(k << U32(23)) + U32(0x3F800000)))
    e = F32(0.0) if far else (F32(1.0) + (r + s)) * power
    h = fma(LOG1P_32_8, e, LOG1P_32_7)
    h = fma(h, e, LOG1P_32_6)
    h = fma(h, e, LOG1P_32_5)
    h = fma(h, e, LOG1P_32_4)
    h = fma(h, e, LOG1P_32_3)
    h = fma(h, e, LOG1P_32_2)
    h = fma(h, e, LOG1P_32_1)
    h = fma(h, e, LOG1P_32_0)
    return r, s, F32(0.0) if a > HELD_WIDE else power, h


# The exponential of these terms, put together in float64.  r and power are exact, s is at most 0.06 of it.
@formula
def logits_wide_exp(z, r, s, power):
    a = -z if z < F32(0.0) else z
    return ((1.0 + r) + s) * power * (LATE_WIDE if a > LATE_FROM_WIDE else 1.0)


# And the loss, of which h counts for e^3: good to 2^-26.
@formula
def logits_wide_loss_of_sides(z, wrong, whole, r, s, power, h):
    a = -z if z < F32(0.0) else z
    e = logits_wide_exp(z, r, s, power)
    u = whole * e
    return fma(-u, e * fma(-e, h, 0.5), wrong * (0.0 if wrong == 0.0 else F64(a))) + u


# The same of a logit and its label.
@formula
def logits_wide_loss(z, y, r, s, power, h):
    return logits_wide_loss_of_sides(z, 1.0 - y if z > F32(0.0) else y, 1.0, r, s, power, h)


# The same of a logit and such shares.
@formula
def logits_shares_wide_loss(z, a, b, r, s, power, h):
    b = 0.0 if b == np.inf and z == np.inf else b
    loss = logits_wide_loss_of_sides(z, a if z > F32(0.0) else b, a + b, r, s, power, h)
    return b if b == np.inf and z < np.inf else loss


# The gradient of these, (wrong - right e) / (1+e), its sign turned for z <= 0.
@formula
def logits_shares_wide_gradient(z, a, b, r, s, power):
    b = 0.0 if b == np.inf and z == np.inf else b
    e = logits_wide_exp(z, r, s, power)
    wrong, right = (a, b) if z > F32(0.0) else (b, a)
    gradient = fma(-right, e, wrong) / (1.0 + e)
    gradient = gradient if z > F32(0.0) else -gradient
    return -b if b == np.inf and z < np.inf else gradient


# The hessian of these.
@formula
def logits_shares_wide_hessian(z, a, b, r, s, power):
    b = 0.0 if b == np.inf and (z == np.inf or z == -np.inf) else b
    e = logits_wide_exp(z, r, s, power)
    hessian = (a + b) * e / ((1.0 + e) * (1.0 + e))
    return b if b == np.inf and z == z else hessian


# Focal loss (Lin et al. 2017, as torchvision has it): with the loss l of a logit and 1-p_t, the share on the wrong
# side,
#
#     focal = share l (1-p_t)^gamma,    1-p_t = (wrong + right e) / (1+e),    share = alpha y + (1-alpha) (1-y),
#
# in log space, (1-p_t)^gamma = exp(gamma (log(wrong + right e) - log(1+e))), but for the usual gamma of 2, a square.
# gamma multiplies the error of the logarithm, so logarithm, exponential and l are sums of two float64.


# a + b and its rounding error (Knuth).
@formula
def two_sum_float64(a, b):
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


# (a + a_error) (b + b_error), a product and its error (Dekker; fma).  An infinite product has none.
@formula
def two_product_float64(a, a_error, b, b_error):
    product = a * b
    error = fma(a, b, -product) + fma(a, b_error, a_error * b)
    return product, error if -1.7e308 < product < 1.7e308 else 0.0


# (n + n_error) / (d + d_error), a quotient and its error, of its residual.
@formula
def two_quotient_float64(n, n_error, d, d_error):
    q = n / d
    return q, (fma(-q, d, n) + fma(-q, d_error, n_error)) / d


# exp(-(away + rest)) as (u + small) late, good to 2^-56, and 0 from HELD_FOCAL on, where away is held:
# v is r + low with its error, and 1 + v + (v^2 P(v) + error) is summed with that of each addition.
@formula
def exact_exp_float64(away, rest):
    far = away > LATE_FROM_64
    shifted = fma(away, -LOG2_E_64, ROUND_64)
    k = shifted - ROUND_64
    r = fma(k, -LOG2_HIGH_64, -away)
    v, v_error = two_sum_float64(r, fma(k, -LOG2_LOW_64, -rest))
    vv = v * v
    p = fma(EXP_64_8, vv, EXP_64_6)
    p = fma(p, vv, EXP_64_4)
    p = fma(p, vv, EXP_64_2)
    p = fma(p, vv, EXP_64_0)
    p_odd = fma(EXP_64_9, vv, EXP_64_7)
    p_odd = fma(p_odd, vv, EXP_64_5)
    p_odd = fma(p_odd, vv, EXP_64_3)
    p_odd = fma(p_odd, vv, EXP_64_1)
    p = fma(p_odd, v, p)
    u, small = two_sum_float64(1.0, v)
    u, error = two_sum_float64(u, fma(vv, p, fma(v, v_error, v_error)))
    k = U64(bits_of_float64(shifted) + (U64(256) if far else U64(0)))
    power = float64_of_bits(U64(U64(k << U64(52)) + U64(0x3FF0000000000000)))
    power = 0.0 if away == HELD_FOCAL else power
    return u * power, (small + error) * power, LATE_FOCAL if far else 1.0


# log(1+e), e = (u + small) late, over late, as a sum of two: e - e s + s z Q(z), s = e/(2+e) + error.
@formula
def exact_log1p_float64(u, small, late):
    e = u * late
    d = 2.0 + e
    over = 1.0 / d
    s = e * over
    s_error = (fma(-s, d, e) - s * ((2.0 - d) + e)) * over
    z = s * s
    zz = z * z
    q = fma(NEAR_64_8, zz, NEAR_64_6)
    q = fma(q, zz, NEAR_64_4)
    q = fma(q, zz, NEAR_64_2)
    q = fma(q, zz, NEAR_64_0)
    q_odd = fma(NEAR_64_9, zz, NEAR_64_7)
    q_odd = fma(q_odd, zz, NEAR_64_5)
    q_odd = fma(q_odd, zz, NEAR_64_3)
    q_odd = fma(q_odd, zz, NEAR_64_1)
    q = fma(q_odd, z, q)
    product = e * s
    log, error = two_sum_float64(e, -product)
    rest = small * late / (1.0 + e) - (fma(e, s, -product) + e * s_error)
    log, error = two_sum_float64(log, error + fma(s * z, q, rest))
    return (log, error) if late == 1.0 else (u, small)


# log(n + small) for n > 0 as a sum of two: as log_rest_float64, s with its error.
@formula
def exact_log_float64(n, small):
    tiny = n < 1e-290
    e, m = split_float64(n * 2.0**60 if tiny else n)
    d = m + 1.0
    over = 1.0 / d
    s = (m - 1.0) * over
    s_error = (fma(-s, d, m - 1.0) - s * (m - (d - 1.0))) * over
    z = s * s
    zz = z * z
    p = fma(LOG_64_6, zz, LOG_64_4)
    p = fma(p, zz, LOG_64_2)
    p = fma(p, zz, LOG_64_0)
    p_odd = fma(LOG_64_5, zz, LOG_64_3)
    p_odd = fma(p_odd, zz, LOG_64_1)
    p = fma(p_odd, z, p)
    e -= 60.0 if tiny else 0.0
    log, error = two_sum_float64(e * LOG2_HIGH_64, 2.0 * s)
    return two_sum_float64(log, error + (fma(s * z, p, e * LOG2_LOW_64) + (2.0 * s_error + small / n)))


# (1-p_t)^gamma of its logarithm, log - tail: in two factors, each as a sum of two, and what both are to
# be multiplied by.  Far out, where a large l may still bring it back, a square, whose root is given twice.
@formula
def focal_powers_float64(tail, tail_error, log, log_error, gamma):
    away, away_error = two_sum_float64(-log, tail)
    away, away_error = two_sum_float64(away, away_error + (tail_error - log_error))
    times = gamma * away
    times_error = fma(gamma, away, -times) + gamma * away_error
    beyond = times > HELD_FOCAL
    times, times_error = (0.5 * times, 0.5 * times_error) if beyond else (times, times_error)
    over = times > HELD_FOCAL
    times, times_error = (HELD_FOCAL, 0.0) if over else (times, times_error)
    power, power_error, late = exact_exp_float64(times, times_error)
    again, again_error, again_late = (power, power_error, late) if beyond else (1.0, 0.0, 1.0)
    return power, power_error, again, again_error, late * again_late


# The loss l and (1-p_t)^gamma, in two factors, each as a sum of two; all are to be multiplied by `late`.
# Of a gamma of 2 the factors are 1-p_t twice.  All is made of e = (u + small) late and log(1+e), |z| held.
@formula
def focal_parts_float64(z, y, gamma, u, small, late, tail, tail_error):
    a = -z if z < 0.0 else z
    held = HELD_FOCAL if a > HELD_FOCAL else a
    rest = 1.0 - y
    error = (1.0 - rest) - y
    wrong, wrong_error, right, right_error = (rest, error, y, 0.0) if z > 0.0 else (y, 0.0, rest, error)
    clear = wrong == 0.0
    # l = wrong |z| + log(1+e)
    e, last = u * late, late if clear else 1.0
    paid = wrong * held
    paid_error = fma(wrong, held, -paid) + wrong_error * held
    add, add_error = (tail, tail_error) if clear else (tail * late, tail_error * late)
    loss, loss_error = two_sum_float64(paid, add)
    loss, loss_error = two_sum_float64(loss, loss_error + add_error + paid_error)
    # 1-p_t = (wrong + right e) / (1+e), where a hard label on the right side leaves e / (1+e), and log e = -|z|.
    product = right * e
    n, n_error = two_sum_float64(wrong, product)
    n_error += fma(right, e, -product) + fma(right, small * late, fma(right_error, e, wrong_error))
    if gamma == 2.0:
        n, n_error, n_late = (u, small, late) if clear else (n, n_error, 1.0)
        d, d_error = two_sum_float64(1.0, e)
        power, power_error = two_quotient_float64(n, n_error, d, d_error + small * late)
        again, again_error, power_late = power, power_error, n_late * n_late
    else:
        log, log_error = exact_log_float64(1.0 if clear else n, 0.0 if clear else n_error)
        log, log_error = (-held, 0.0) if clear else (log, log_error)
        power, power_error, again, again_error, power_late = focal_powers_float64(
            tail * late, tail_error * late, log, log_error, gamma
        )
    return loss, loss_error, power, power_error, again, again_error, last * power_late


# The share of a label, as a sum of two; `positive` is alpha and `negative` 1-alpha, or both 1.
@formula
def focal_share_float64(y, positive, negative):
    rest = 1.0 - y
    one, other = positive * y, negative * rest
    share, error = two_sum_float64(one, other)
    return share, error + fma(positive, y, -one) + fma(negative, rest, -other) + negative * ((1.0 - rest) - y)


# The focal loss of a logit and its label, from e and log(1+e) on.  Beyond HELD_FOCAL a share on the wrong
# side pays for all of |z|.
@formula
def focal_loss_of_exp_float64(z, y, gamma, positive, negative, u, small, late, tail, tail_error):
    loss, loss_error, power, power_error, again, again_error, late = focal_parts_float64(
        z, y, gamma, u, small, late, tail, tail_error
    )
    a = -z if z < 0.0 else z
    rest = 1.0 - y
    wrong, wrong_error = (rest, (1.0 - rest) - y) if z > 0.0 else (y, 0.0)
    paid, paid_error = two_product_float64(wrong, wrong_error, a, 0.0)
    loss, loss_error = (paid, paid_error) if a > HELD_FOCAL and wrong > 0.0 else (loss, loss_error)
    share, share_error = focal_share_float64(y, positive, negative)
    product, error = two_product_float64(loss, loss_error, power, power_error)
    product, error = two_product_float64(product, error, again, again_error)
    product, error = two_product_float64(product, error, share, share_error)
    return 0.0 if share == 0.0 and z == z else product + error, late


# Its derivative, share (1-p_t)^gamma (l' + gamma l (1-2y) e / ((1+e) (wrong + right e))).
@formula
def focal_gradient_of_exp_float64(z, y, gamma, positive, negative, u, small, late, tail, tail_error):
    loss, loss_error, power, power_error, again, again_error, last = focal_parts_float64(
        z, y, gamma, u, small, late, tail, tail_error
    )
    rest = 1.0 - y
    error = (1.0 - rest) - y
    wrong, wrong_error, right, right_error = (rest, error, y, 0.0) if z > 0.0 else (y, 0.0, rest, error)
    e, e_error = u * late, small * late
    clear = wrong == 0.0
    d, d_error = two_sum_float64(1.0, e)
    d_error += e_error
    # l' = (wrong - right e) / (1+e), over `late` as l is
    v, v_error = (u, small) if clear else (e, e_error)
    paid, paid_error = two_product_float64(right, right_error, v, v_error)
    n, n_error = two_sum_float64(wrong, -paid)
    slope, slope_error = two_quotient_float64(n, n_error + (wrong_error - paid_error), d, d_error)
    # (1-2y) e / ((1+e) (wrong + right e)), where a hard label on the right side leaves (1-2y) / (1+e)
    paid, paid_error = two_product_float64(right, right_error, e, e_error)
    n, n_error = two_sum_float64(wrong, paid)
    n, n_error = (1.0, 0.0) if clear else (n, n_error + (wrong_error + paid_error))
    n, n_error = two_product_float64(n, n_error, d, d_error)
    tilt, tilt_error = two_sum_float64(1.0, -2.0 * y)
    tilt, tilt_error = two_product_float64(tilt, tilt_error, 1.0 if clear else e, 0.0 if clear else e_error)
    bend, bend_error = two_quotient_float64(tilt, tilt_error, n, n_error)
    times = min(gamma, MOST_GAMMA) * loss
    bend, bend_error = two_product_float64(bend, bend_error, times, fma(min(gamma, MOST_GAMMA), loss, -times))
    bend_error += bend * (loss_error / loss if loss > 0.0 else 0.0)
    slope, slope_error = (slope, slope_error) if z > 0.0 else (-slope, -slope_error)
    total, error = two_sum_float64(slope, bend)
    total, error = two_product_float64(total, error + (slope_error + bend_error), power, power_error)
    total, error = two_product_float64(total, error, again, again_error)
    total, error = two_product_float64(total, error, *focal_share_float64(y, positive, negative))
    return total + error, last


# exp(-|z|) as (u + small) late, |z| held.
@formula
def focal_exp_float64(z):
    a = -z if z < 0.0 else z
    return exact_exp_float64(HELD_FOCAL if a > HELD_FOCAL else a, 0.0)


# The focal loss of a logit and its label.
@formula
def focal_loss_float64(z, y, gamma, positive, negative):
    u, small, late = focal_exp_float64(z)
    tail, tail_error = exact_log1p_float64(u, small, late)
    return focal_loss_of_exp_float64(z, y, gamma, positive, negative, u, small, late, tail, tail_error)


# The focal gradient of a logit and its label.
@formula
def focal_gradient_float64(z, y, gamma, positive, negative):
    u, small, late = focal_exp_float64(z)
    tail, tail_error = exact_log1p_float64(u, small, late)
    return focal_gradient_of_exp_float64(z, y, gamma, positive, negative, u, small, late, tail, tail_error)


# Of float32 the focal loss is computed in float64 alone: it has the digits that errors stand for above,
# and the range that late factors do.  Logarithms and exponentials are good to 2^-32, of which a gamma of
# 10 leaves 2^-28.
#
# exp(-away) for away in [0, HELD_POWER].
@formula
def wide_exp_float64(away):
    shifted = fma(away, -LOG2_E_64, ROUND_64)
    v = fma(shifted - ROUND_64, -LOG2_64, -away)
    vv = v * v
    p = fma(EXP_WIDE_4, vv, EXP_WIDE_2)
    p = fma(p, vv, EXP_WIDE_0)
    p_odd = fma(EXP_WIDE_5, vv, EXP_WIDE_3)
    p_odd = fma(p_odd, vv, EXP_WIDE_1)
    p = fma(p_odd, v, p)
    power = float64_of_bits(U64(U64(bits_of_float64(shifted) << U64(52)) + U64(0x3FF0000000000000)))
    return fma(fma(vv, p, v), power, power)


# log(1+u) for u in [0, 1].
@formula
def wide_log1p_float64(u):
    uu = u * u
    h = fma(LOG1P_WIDE_8, uu, LOG1P_WIDE_6)
    h = fma(h, uu, LOG1P_WIDE_4)
    h = fma(h, uu, LOG1P_WIDE_2)
    h = fma(h, uu, LOG1P_WIDE_0)
    h_odd = fma(LOG1P_WIDE_9, uu, LOG1P_WIDE_7)
    h_odd = fma(h_odd, uu, LOG1P_WIDE_5)
    h_odd = fma(h_odd, uu, LOG1P_WIDE_3)
    h_odd = fma(h_odd, uu, LOG1P_WIDE_1)
    h = fma(h_odd, u, h)
    return fma(uu, fma(u, h, -0.5), u)


# log n for n in (0, 1]; of 0 some -709, which is as good as any where l is 0.
@formula
def wide_log_float64(n):
    e, m = split_float64(n)
    g = m - 1.0
    gg = g * g
    p = fma(LOG_WIDE_8, gg, LOG_WIDE_6)
    p = fma(p, gg, LOG_WIDE_4)
    p = fma(p, gg, LOG_WIDE_2)
    p = fma(p, gg, LOG_WIDE_0)
    p_odd = fma(LOG_WIDE_9, gg, LOG_WIDE_7)
    p_odd = fma(p_odd, gg, LOG_WIDE_5)
    p_odd = fma(p_odd, gg, LOG_WIDE_3)
    p_odd = fma(p_odd, gg, LOG_WIDE_1)
    p = fma(p_odd, g, p)
    return fma(gg, p, fma(e, LOG2_64, g))


# exp(-|z|), and 0 beyond HELD_WIDE.
@formula
def wide_exp_of_logit_float64(z):
    a = -z if z < 0.0 else z
    gone = a > F64(HELD_WIDE)
    return 0.0 if gone else wide_exp_float64(F64(HELD_WIDE) if gone else a)


# Of u = exp(-|z|): the loss l; and what the power is of: log(1+u), wrong + right u, and their 1-p_t.
@formula
def wide_focal_terms_float64(z, y, u):
    a = -z if z < 0.0 else z
    rest = 1.0 - y
    wrong, right = (rest, y) if z > 0.0 else (y, rest)
    tail = wide_log1p_float64(u)
    n = fma(right, u, wrong)
    return fma(wrong, 0.0 if wrong == 0.0 else a, tail), tail, n, n / (1.0 + u)


# l' + gamma l (1-2y) u / ((1+u) (wrong + right u)), and the same three.  One division gives both
# quotients; a hard label on the right side leaves (1-2y) / (1+u) of the second.  |z| is held, since an
# infinite l has no part in it.
@formula
def wide_focal_slope_float64(z, y, u, gamma):
    a = -z if z < 0.0 else z
    rest = 1.0 - y
    wrong, right = (rest, y) if z > 0.0 else (y, rest)
    tail = wide_log1p_float64(u)
    n, d = fma(right, u, wrong), 1.0 + u
    clear = wrong == 0.0
    other = 1.0 if clear else n
    both = 1.0 / (d * other)
    over = both * other
    loss = fma(wrong, F64(HELD_WIDE) if a > F64(HELD_WIDE) else a, tail)
    slope = fma(-right, u, wrong) * over
    bend = loss * fma(-2.0, y, 1.0) * (over if clear else u * both) * min(gamma, MOST_GAMMA)
    return (slope if z > 0.0 else -slope) + bend, tail, n, n * over


# (1-p_t)^gamma of -log(1-p_t).
@formula
def wide_focal_power_float64(away, gamma):
    times = gamma * away
    gone = times > HELD_POWER
    return 0.0 if gone else wide_exp_float64(HELD_POWER if gone else times)


# A loss or a slope times its power and the label's share.  A share of 0 makes nothing of infinity, and a
# power of 0 does not.
@formula
def wide_focal_product_float64(z, y, value, power, positive, negative):
    share = fma(positive, y, negative * (1.0 - y))
    product = value if value == np.inf else value * power
    return 0.0 if share == 0.0 and z == z else product * share


# All of it for one element, as devices take it; the loops below take a step for a row before the next.
@formula
def wide_focal_loss_float64(z, y, gamma, positive, negative):
    loss, tail, n, q = wide_focal_terms_float64(z, y, wide_exp_of_logit_float64(z))
    power = q * q if gamma == 2.0 else wide_focal_power_float64(tail - wide_log_float64(n), gamma)
    return wide_focal_product_float64(z, y, loss, power, positive, negative)


# The same for the derivative.
@formula
def wide_focal_gradient_float64(z, y, gamma, positive, negative):
    slope, tail, n, q = wide_focal_slope_float64(z, y, wide_exp_of_logit_float64(z), gamma)
    power = q * q if gamma == 2.0 else wide_focal_power_float64(tail - wide_log_float64(n), gamma)
    return wide_focal_product_float64(z, y, slope, power, positive, negative)


# For sums that are rounded to 16 bits, 2^-12 at best: the loss within 10^-5 of it.  For t <= 1/2 the
# device's log2 is within 2^-22 of the true one (PTX ISA, lg2.approx.f32); it takes the place of 20 instructions.
@formula
def quick_loss(x, y):
    beyond_half = x > F32(0.5)
    t = F32(1.0) - x if beyond_half else x
    z = F32(1.0) - y
    w_far = z if beyond_half else y
    w_near = y if beyond_half else z
    q = fma(NEAR_16_4, t, NEAR_16_3)
    q = fma(q, t, NEAR_16_2)
    q = fma(q, t, NEAR_16_1)
    q = fma(q, t, NEAR_16_0)
    power = quick_log2(t)
    power = HELD_LOG2_32 if power < HELD_LOG2_32 else power
    return fma(w_far * MINUS_LOG2_32, power, w_near * fma(t * t, q, t))


# loss_float32 for labels whose 1-y is exact, integers and float16: its bits, without the terms that are 0.
@formula
def exact_label_loss(x, y):
    r = F32(1.0) - x
    beyond_half = r < x
    t = r if beyond_half else x
    z = F32(1.0) - y
    w_far = z if beyond_half else y
    w_near = y if beyond_half else z
    e, g = split_float32(t)
    tail = t * t * near_polynomial_float32(t)
    rest = fma(g * g, log_polynomial_float32(g), fma(e, LOG2_LOW_32, g))
    small = fma(-w_far, rest, w_near * tail)
    return fma(-w_far, e * LOG2_HIGH_32, fma(w_near, t, small))


# log(1+q), where 1+q is also given as the product: of a product in [2/3, 4/3) it is 2 atanh(q/(2+q)).
@formula
def log_of_product(product, q):
    e, m = split_float64(product)
    g = q if e == 0.0 else m - 1.0
    s = g / (2.0 + g)
    z = s * s
    zz = z * z
    p = fma(LOG_64_6, zz, LOG_64_4)
    p = fma(p, zz, LOG_64_2)
    p = fma(p, zz, LOG_64_0)
    p_odd = fma(LOG_64_5, zz, LOG_64_3)
    p_odd = fma(p_odd, zz, LOG_64_1)
    p = fma(p_odd, z, p)
    return fma(e, LOG2_64, fma(s * z, p, 2.0 * s))
