// The shape of a tile register: rows (1 to 16) of `row_bytes` bytes (4 to 64, a multiple of 4).
struct TileShape {
  int rows, row_bytes;
};
constexpr int kTiles = 8, kTileRows = 16, kTileBytes = 64;
