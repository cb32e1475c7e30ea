# Inside a wheel everything lives in the package folder; elsewhere the usual GNU places.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
if(SKBUILD)
  set(CATTN_LIBDIR cattn/lib)
  set(CATTN_INCLUDEDIR cattn/include)
else()
  set(CATTN_LIBDIR ${CMAKE_INSTALL_LIBDIR})
  set(CATTN_INCLUDEDIR ${CMAKE_INSTALL_INCLUDEDIR})
endif()
set(CATTN_CMAKEDIR ${CATTN_LIBDIR}/cmake/cattn)

install(TARGETS cattn EXPORT cattn-targets
  LIBRARY DESTINATION ${CATTN_LIBDIR} INCLUDES DESTINATION ${CATTN_INCLUDEDIR})
install(FILES src/cattn.h DESTINATION ${CATTN_INCLUDEDIR})
install(EXPORT cattn-targets NAMESPACE cattn:: DESTINATION ${CATTN_CMAKEDIR}
  FILE cattn-config.cmake)
write_basic_package_version_file(cattn-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/cattn-config-version.cmake
  DESTINATION ${CATTN_CMAKEDIR})
if(CATTN_PYTHON)
  install(TARGETS _core LIBRARY DESTINATION cattn)
endif()
