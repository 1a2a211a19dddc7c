{{- define "sendoff.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 52 characters: pods of a StatefulSet and their revision labels add to the name. */}}
{{- define "sendoff.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "sendoff.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The labels that select the pods. They never change: a StatefulSet's selector is immutable. */}}
{{- define "sendoff.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sendoff.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sendoff.labels" -}}
{{ include "sendoff.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sendoff.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sendoff.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the service account, or let the chart create one (serviceAccount.create)" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sendoff.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* The number of a port in an address such as "[::]:9477". */}}
{{- define "sendoff.port" -}}
{{- regexFind "[0-9]+$" . | required (printf "config.listen: %q has no port; write an address such as [::]:9477" .) -}}
{{- end -}}

{{/* One setting as TOML. Helm reads all numbers of a values file as floating point, and sendoff wants whole ones whole. */}}
{{- define "sendoff.setting" -}}
{{- if and (kindIs "float64" .value) (eq .value (float64 (int64 .value))) -}}
{{ .key }} = {{ int64 .value }}
{{- else -}}
{{ .key }} = {{ toJson .value }}
{{- end -}}
{{- end -}}

{{- define "sendoff.tlsSecret" -}}
{{- default (printf "%s-tls" (include "sendoff.fullname" .)) .Values.tls.secretName -}}
{{- end -}}

{{/* Whether the configuration names a file of a mounted Secret: not empty, or empty. */}}
{{- define "sendoff.mounts" -}}
{{- if contains (printf "/var/run/secrets/sendoff-%s/" .secret) (include "sendoff.config" .root) -}}yes{{- end -}}
{{- end -}}

{{/* Whether everybody who reaches the ingest listener, or traffic in the clear, gets in: not empty, or empty. */}}
{{- define "sendoff.isOpen" -}}
{{- $auth := default dict .Values.config.auth -}}
{{- $address := .Values.config.listen.ingest -}}
{{- if not (or (hasPrefix "127." $address) (hasPrefix "[::1]" $address) (and .Values.tls.enabled (eq (default "none" $auth.ingest) "required"))) -}}yes{{- end -}}
{{- end -}}

{{/* Stops where the daemon would refuse to start. */}}
{{- define "sendoff.check" -}}
{{- range tuple "functions" "clients" "operators" -}}
{{- if hasKey $.Values.config . -}}
{{- fail (printf "config.%s: use the list `%s` beside config" . .) -}}
{{- end -}}
{{- end -}}
{{- $name := include "sendoff.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "fullnameOverride: %q cannot be the name of a Service: set this to letters, digits and hyphens that begin with a letter" $name) -}}
{{- end -}}
{{- $ports := dict -}}
{{- range tuple "ingest" "health" -}}
{{- $port := include "sendoff.port" (get $.Values.config.listen .) -}}
{{- if or (lt (int $port) 1) (gt (int $port) 65535) (hasKey $ports $port) -}}
{{- fail (printf "config.listen.%s: the ports of ingest and health must differ and be from 1 to 65535" .) -}}
{{- end -}}
{{- $_ := set $ports $port true -}}
{{- end -}}
{{- range $list, $key := dict "clients" "name" "operators" "name" "functions" "pattern" -}}
{{- $seen := dict -}}
{{- range default list (get $.Values $list) -}}
{{- $one := get . $key -}}
{{- if hasKey $seen $one -}}
{{- fail (printf "%s: %q is there twice; put all its settings into one entry" $list $one) -}}
{{- end -}}
{{- $_ := set $seen $one true -}}
{{- end -}}
{{- end -}}
{{- if and (include "sendoff.isOpen" .) (not .Values.config.listen.allow_unauthenticated_remote) -}}
{{- fail "config.listen.allow_unauthenticated_remote: the ingest listener would be open without TLS or to everybody; set tls.enabled: true and config.auth.ingest: required, or, if you trust everybody who reaches it, set this to true" -}}
{{- end -}}
{{- if and (eq (default "none" (default dict .Values.config.auth).ingest) "required") (not .Values.clients) -}}
{{- fail "clients: name at least one client, because config.auth.ingest is required" -}}
{{- end -}}
{{- end -}}

{{/* sendoff.toml: settings at the top, then the tables, then clients, operators, and the patterns of functions in their order. */}}
{{- define "sendoff.config" -}}
{{- include "sendoff.check" . -}}
{{- $config := deepCopy .Values.config -}}
{{- if .Values.tls.enabled -}}
{{- $files := dict "cert" "/var/run/secrets/sendoff-tls/tls.crt" "key" "/var/run/secrets/sendoff-tls/tls.key" "listeners" "ingest" -}}
{{- $_ := set $config "tls" (merge (default dict $config.tls) $files) -}}
{{- end -}}
{{- if not $config.listen.ingest_hosts -}}
{{- $name := include "sendoff.fullname" . -}}
{{- $namespace := .Release.Namespace -}}
{{- $_ := set $config.listen "ingest_hosts" (printf "%s %s.%s %s.%s.svc %s.%s.svc.cluster.local" $name $name $namespace $name $namespace $name $namespace) -}}
{{- end -}}
{{- range $key, $value := $config }}
{{- if not (kindIs "map" $value) }}
{{ include "sendoff.setting" (dict "key" $key "value" $value) }}
{{- end }}
{{- end }}
{{- range $name, $table := $config }}
{{- if kindIs "map" $table }}

[{{ $name }}]
{{- range $key, $value := $table }}
{{ include "sendoff.setting" (dict "key" $key "value" $value) }}
{{- end }}
{{- end }}
{{- end }}
{{- range .Values.clients }}

[clients.{{ toJson .name }}]
{{- $proofs := dict }}
{{- if not (or .path_token_file .token_file .access_key_id .san) }}
{{- $_ := set $proofs "path_token_file" (printf "/var/run/secrets/sendoff-clients/%s" .name) }}
{{- end }}
{{- range $key, $value := merge $proofs (omit . "name") }}
{{ include "sendoff.setting" (dict "key" $key "value" $value) }}
{{- end }}
{{- end }}
{{- range .Values.operators }}

[operators.{{ toJson .name }}]
{{- $proofs := dict }}
{{- if not (or .token_file .san) }}
{{- $_ := set $proofs "token_file" (printf "/var/run/secrets/sendoff-operators/%s" .name) }}
{{- end }}
{{- range $key, $value := merge $proofs (omit . "name") }}
{{ include "sendoff.setting" (dict "key" $key "value" $value) }}
{{- end }}
{{- end }}
{{- range .Values.functions }}

[functions.{{ toJson .pattern }}]
{{- range $key, $value := omit . "pattern" }}
{{ include "sendoff.setting" (dict "key" $key "value" $value) }}
{{- end }}
{{- end }}
{{- end -}}
