"""The files that a forecast leaves: netCDF, Zarr, GeoTIFF, products, tables of places."""
