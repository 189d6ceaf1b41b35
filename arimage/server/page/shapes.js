// Sizes that a model can make, from shapes as people name them.

const ASPECTS = { square: [1, 1], portrait: [3, 4], landscape: [4, 3], tall: [9, 16], wide: [16, 9] };
export const SHAPES = Object.keys(ASPECTS);

/** {width, height} of a shape at a model's usual area, as the library reckons it. */
export function sizeOf(shape, model) {
  const [wide, high] = ASPECTS[shape];
  const [side] = model.abilities.size;
  const root = Math.sqrt(wide / high);
  return { width: sideOf(side * root, model), height: sideOf(side / root, model) };
}

/** The side that a model can make which is nearest to a length. */
export function sideOf(length, model) {
  const { side_step: step, max_side: most } = model.abilities;
  return Math.min(Math.max(Math.round(length / step), 1) * step, most);
}

/** The shape that has this size, or "". */
export function shapeOf(width, height, model) {
  return SHAPES.find((shape) => {
    const size = sizeOf(shape, model);
    return size.width === width && size.height === height;
  }) ?? "";
}
