package compile

import "google.golang.org/protobuf/reflect/protoreflect"

// accessLists are the messages of rules of access. A condition that can not
// be asked is refused wherever it stands: a rule without it would be another rule.
var accessLists = map[protoreflect.FullName]lists{
	"envoy.extensions.filters.http.rbac.v3.RBAC": {
		enforced: "rules shadow_rules shadow_rules_stat_prefix",
		harmless: "rules_stat_prefix track_per_rule_stats", // statistics
		refused:  "matcher shadow_matcher",
	},
	"envoy.config.rbac.v3.RBAC": {
		enforced: "action policies",
		refused:  "audit_logging_options", // who asks for a log of decisions must get one
	},
	"envoy.config.rbac.v3.Policy": {
		enforced: "permissions principals",
		refused:  "condition checked_condition cel_config",
	},
	"envoy.config.rbac.v3.Permission": {
		enforced: "and_rules or_rules any header url_path destination_ip destination_port destination_port_range metadata " +
			"not_rule requested_server_name uri_template sourced_metadata",
		refused: "matcher",
	},
	"envoy.config.rbac.v3.Permission.Set": {enforced: "rules"},
	"envoy.config.rbac.v3.Principal": {
		enforced: "and_ids or_ids any authenticated source_ip direct_remote_ip remote_ip header url_path metadata not_id sourced_metadata",
		refused:  "filter_state custom",
	},
	"envoy.config.rbac.v3.Principal.Set":           {enforced: "ids"},
	"envoy.config.rbac.v3.Principal.Authenticated": {enforced: "principal_name"},
	"envoy.config.rbac.v3.SourcedMetadata":         {enforced: "metadata_matcher metadata_source"},
	"envoy.config.core.v3.CidrRange":               {enforced: "address_prefix prefix_len"},
	"envoy.type.v3.Int32Range":                     {enforced: "start end"},
	"envoy.type.v3.DoubleRange":                    {enforced: "start end"},
	"envoy.type.matcher.v3.PathMatcher":            {enforced: "path"},
	"envoy.type.matcher.v3.MetadataMatcher":        {enforced: "filter path value invert"},
	"envoy.type.matcher.v3.MetadataMatcher.PathSegment": {
		enforced: "key",
	},
	"envoy.type.matcher.v3.ValueMatcher": {
		enforced: "null_match double_match string_match bool_match present_match list_match or_match",
	},
	"envoy.type.matcher.v3.ValueMatcher.NullMatch": {},
	"envoy.type.matcher.v3.DoubleMatcher":          {enforced: "range exact"},
	"envoy.type.matcher.v3.ListMatcher":            {enforced: "one_of"},
	"envoy.type.matcher.v3.OrMatcher":              {enforced: "value_matchers"},
	"envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig": {
		enforced: "path_template",
	},
}
