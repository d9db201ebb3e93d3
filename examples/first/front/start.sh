# nginx reads no environment in `listen`, so the configuration is a template, as in the official image.
set -eu
envsubst '$HOST $PORT $WEB_HOST $WEB_PORT $MAINLAND_INSTANCE $MAINLAND_ZONE' <nginx.conf.template >nginx.conf
mkdir -p temporary
exec nginx -p "$PWD" -e stderr -c "$PWD/nginx.conf"
