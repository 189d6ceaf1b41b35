// Sizes that a model can make, from shapes as people name them.

const ASPECTS = { square: [1, 1], portrait: [3, 4], landscape: [4, 3], tall: [9, 16], wide: [16, 9] };
export const SHAPES = Object.keys(ASPECTS);

/** {width, height} of a shape at a model's usual area, as the library reckons it. */
export function sizeOf(shape, model) {
  const { size, side_step: step, max_side: most } = model.abilities;
  const [wide, high] = ASPECTS[shape];
  const root = Math.sqrt(wide / high);
  const snapped = (length) => Math.min(Math.max(Math.round(length / step), 1) * step, most);
  return { width: snapped(size[0] * root), height: snapped(size[0] / root) };
}

/** The shape that has this size, or "". */
export function shapeOf(width, height, model) {
  return SHAPES.find((shape) => {
    const size = sizeOf(shape, model);
    return size.width === width && size.height === height;
  }) ?? "";
}
